//! Lines of a title, with places that a run fills.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A line of a title: text with places that a run fills.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TitleLine {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place(Place),
}

/// What a title can tell of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The report's title.
    Title,
    /// Its description.
    Description,
    /// The parameters that have a value.
    Parameters,
    /// When the data was read, in the report's time zone.
    Snapshot,
    /// The time zone.
    TimeZone,
    /// Who asked for the run.
    Owner,
    /// The execution's number.
    Execution,
}

impl Place {
    const ALL: [Self; 7] = [
        Self::Title,
        Self::Description,
        Self::Parameters,
        Self::Snapshot,
        Self::TimeZone,
        Self::Owner,
        Self::Execution,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Title => "title",
            Self::Description => "description",
            Self::Parameters => "parameters",
            Self::Snapshot => "snapshot",
            Self::TimeZone => "time_zone",
            Self::Owner => "owner",
            Self::Execution => "execution",
        }
    }
}

impl TitleLine {
    /// The line of a run.
    pub fn fill<'a>(&self, value: impl Fn(Place) -> Cow<'a, str>) -> String {
        let mut line = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Place(place) => line.push_str(&value(*place)),
            }
        }
        line
    }
}

impl TryFrom<String> for TitleLine {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(['{', '}']) {
            plain.push_str(&rest[..at]);
            let tail = &rest[at..];
            if tail.starts_with("{{") || tail.starts_with("}}") {
                plain.push_str(&tail[..1]);
                rest = &tail[2..];
                continue;
            }
            let place = tail.strip_prefix('{').and_then(|tail| {
                Place::ALL.into_iter().find_map(|place| {
                    tail.strip_prefix(place.name())?.strip_prefix('}').map(|rest| (place, rest))
                })
            });
            let Some((place, after)) = place else {
                let names: Vec<_> = Place::ALL.iter().map(|place| place.name()).collect();
                return Err(format!(
                    "a line of a title may hold {{{}}}, and {{{{ and }}}} for brackets",
                    names.join("}, {")
                ));
            };
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(Piece::Place(place));
            rest = after;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self { pieces })
    }
}

impl From<TitleLine> for String {
    fn from(line: TitleLine) -> Self {
        line.to_string()
    }
}

impl fmt::Display for TitleLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => {
                    f.write_str(&text.replace('{', "{{").replace('}', "}}"))?;
                }
                Piece::Place(place) => write!(f, "{{{}}}", place.name())?,
            }
        }
        Ok(())
    }
}
