//! The names by which people are searched for, all at once, in any text.
//!
//! A name is found where it stands by itself: `ann@x.org` is not in `joann@x.org`, and `Moyo` not
//! in `Moyos`. Capitals do not count. Very short names are found only where they are the whole
//! value: `ann` as a word is in many texts.

use std::borrow::Cow;
use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;
use serde::{Deserialize, Serialize};

/// Names of fewer characters are found only where they are the whole value.
const MIN_WORD_CHARS: usize = 5;
/// Most names of a person that are kept: all columns, and many addresses.
pub const MAX_NAMES: usize = 2_000;

/// How surely a name is a person's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strength {
    /// Of a unique column: nobody else has it.
    Unique,
    /// Others may have it too: somebody else's row with it tells of them.
    Shared,
    /// Many may have it: it tells only in rows that are tied to the person.
    Tied,
}

/// What a person is called by. The only place where names are held together: in memory, or sealed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Identity(BTreeSet<(Strength, String)>);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({} names)", self.0.len())
    }
}

impl Identity {
    /// Adds a name; empty ones and those above `MAX_NAMES` are left out.
    pub fn add(&mut self, strength: Strength, name: &str) {
        let name = name.trim();
        if !name.is_empty() && self.0.len() < MAX_NAMES {
            self.0.insert((strength, name.to_lowercase()));
        }
    }

    /// Adds all of another's.
    pub fn extend(&mut self, other: Self) {
        for (strength, name) in other.0 {
            self.add(strength, &name);
        }
    }
}

/// The names of several people.
#[derive(Debug)]
pub struct Names {
    automaton: AhoCorasick,
    /// Whose each pattern is, and how surely.
    of: Vec<(usize, Strength)>,
}

/// A name in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Whose: the position among the people.
    pub person: usize,
    /// How surely.
    pub strength: Strength,
}

impl Names {
    /// Prepares the search for people's names.
    ///
    /// # Errors
    /// There are more than an automaton can hold: gigabytes.
    pub fn new(people: &[Identity]) -> Result<Self, aho_corasick::BuildError> {
        let all = people.iter().enumerate().flat_map(|(person, identity)| {
            identity.0.iter().map(move |(strength, name)| (person, *strength, name.as_str()))
        });
        let (mut patterns, mut of) = (Vec::new(), Vec::new());
        for (person, strength, name) in all {
            patterns.push(name);
            of.push((person, strength));
        }
        Ok(Self { automaton: AhoCorasick::new(patterns)?, of })
    }

    /// The names in a text, each person's once per strength.
    pub fn find(&self, text: &str) -> Vec<Found> {
        let text = lower(text);
        let mut found = Vec::new();
        for hit in self.automaton.find_overlapping_iter(text.as_bytes()) {
            if !stands_alone(&text, hit.start(), hit.end()) {
                continue;
            }
            let (person, strength) = self.of[hit.pattern().as_usize()];
            let hit = Found { person, strength };
            if !found.contains(&hit) {
                found.push(hit);
            }
        }
        found
    }
}

fn lower(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_uppercase) {
        Cow::Owned(text.to_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let (Some(name), Some(before), Some(after)) =
        (text.get(start..end), text.get(..start), text.get(end..))
    else {
        return false; // inside a character
    };
    if before.trim().is_empty() && after.trim().is_empty() {
        return true;
    }
    if name.chars().count() < MIN_WORD_CHARS {
        return false;
    }
    let inside = |c: char| c.is_alphanumeric();
    let (last, next) = (before.chars().next_back(), after.chars().next());
    if last.is_some_and(inside) || next.is_some_and(inside) {
        return false;
    }
    if !name.contains('@') {
        return true;
    }
    // `jo.ann@x.org` and `ann@x.org.zw` are other addresses; `to ann@x.org.` is this one.
    let joins_before = last.is_some_and(|c| "._%+-".contains(c));
    let mut after = after.chars();
    let joins_after =
        after.next().is_some_and(|c| ".-".contains(c)) && after.next().is_some_and(inside);
    !joins_before && !joins_after
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(of: &[&str]) -> Names {
        let people: Vec<_> = of
            .iter()
            .map(|name| {
                let mut identity = Identity::default();
                identity.add(Strength::Unique, name);
                identity
            })
            .collect();
        Names::new(&people).expect("few names")
    }

    #[test]
    fn a_name_is_found_where_it_stands_by_itself() {
        let names = names(&["ann@x.org", "Tendai Moyo", "ann", "12 Main St\nHarare"]);
        let people = |text: &str| {
            let mut people: Vec<_> = names.find(text).iter().map(|found| found.person).collect();
            people.sort_unstable();
            people
        };
        for (text, expected) in [
            ("ann@x.org", vec![0]),
            ("write to ANN@X.ORG.", vec![0]),
            ("<ann@x.org>, b@x.org", vec![0]),
            ("joann@x.org", vec![]),
            ("jo.ann@x.org", vec![]),
            ("ann@x.org.zw", vec![]),
            ("ann@x.orga", vec![]),
            ("Dr TENDAI MOYO (left)", vec![1]),
            ("Tendai Moyos", vec![]),
            (" Ann ", vec![2]),
            ("ann was here", vec![]),
            ("at 12 Main St\nHarare.", vec![3]),
            ("", vec![]),
        ] {
            assert_eq!(people(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_identity_says_nothing_when_it_is_printed() {
        let mut identity = Identity::default();
        identity.add(Strength::Unique, "ann@x.org");
        identity.add(Strength::Shared, "  ");
        assert_eq!(format!("{identity:?}"), "Identity(1 names)");
    }

    proptest! {
        #[test]
        fn a_name_between_spaces_is_always_found(
            name in "[a-zé]{5,12}(@[a-z]{2,5}\\.org)?",
            before in ".{0,10}",
            after in ".{0,10}",
        ) {
            let names = names(&[&name]);
            prop_assert_eq!(names.find(&format!("{before} {name} {after}")).len(), 1);
            let glued = format!("{before}x{name}x{after}");
            prop_assert!(names.find(&glued).is_empty() || before.contains(&name) || after.contains(&name));
        }
    }
}
