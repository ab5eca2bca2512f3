//! Conditions: boolean SQL over one row that an operator writes into a policy or a hold.
//!
//! A condition is pasted into statements, in parentheses, so it must be one expression that cannot
//! leave them. Whether it names real columns is for the database to say, before it is used.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

const MAX_BYTES: usize = 4_000;

/// Words that begin a query inside an expression. A condition sees one row and its parents.
const REFUSED_WORDS: [&str; 4] = ["select", "with", "values", "table"];

/// A boolean SQL expression: balanced, without comments, parameters, subqueries or `;`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Condition(String);

impl Condition {
    /// The SQL, without parentheses around it.
    pub fn as_sql(&self) -> &str {
        &self.0
    }

    /// The names that are called like functions, lower case. Some may be keywords, like `in`.
    pub fn functions(&self) -> BTreeSet<String> {
        let tokens = scan(&self.0).unwrap_or_default();
        let calls = tokens.windows(2).filter_map(|pair| match pair {
            [Token::Word(word), Token::Open] => Some(word.to_lowercase()),
            _ => None,
        });
        calls.collect()
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let text = text.trim();
        if text.len() > MAX_BYTES {
            return Err(ConditionError::TooLong);
        }
        let tokens = scan(text)?;
        if tokens.is_empty() {
            return Err(ConditionError::Empty);
        }
        let mut depth = 0_usize;
        for token in &tokens {
            match token {
                Token::Open => depth += 1,
                Token::Close => depth = depth.checked_sub(1).ok_or(ConditionError::Unbalanced)?,
                Token::Word(word) => {
                    let word = word.to_lowercase();
                    if REFUSED_WORDS.contains(&word.as_str()) {
                        return Err(ConditionError::Query);
                    }
                }
                Token::Other => {}
            }
        }
        if depth == 0 { Ok(Self(text.to_owned())) } else { Err(ConditionError::Unbalanced) }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no [`Condition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// Nothing in it.
    #[error("must be a condition in SQL, like `status <> 'active'`")]
    Empty,
    /// Too long.
    #[error("must be at most {MAX_BYTES} bytes")]
    TooLong,
    /// Parentheses.
    #[error("must have its parentheses in pairs")]
    Unbalanced,
    /// Quotes.
    #[error("must end each quoted text and name that it begins")]
    Quote,
    /// A comment, a parameter, dollar quotes, a backslash or a semicolon.
    #[error("must be without comments, `;`, `$`, `\\` and control characters")]
    Character,
    /// A query inside.
    #[error("must be about the row and its parents only, without a query inside")]
    Query,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Open,
    Close,
    Other,
}

fn scan(text: &str) -> Result<Vec<Token<'_>>, ConditionError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            ' ' | '\n' | '\t' => first.len_utf8(),
            '\'' | '"' => quoted(rest, first)?,
            // `\` escapes in E'' texts, which would end elsewhere than we see.
            ';' | '$' | '\\' => return Err(ConditionError::Character),
            _ if first.is_control() => return Err(ConditionError::Character),
            _ if rest.starts_with("--") || rest.starts_with("/*") => {
                return Err(ConditionError::Character);
            }
            _ if first.is_alphabetic() || first == '_' => {
                rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())
            }
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        match first {
            ' ' | '\n' | '\t' => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            _ if first.is_alphabetic() || first == '_' => tokens.push(Token::Word(token)),
            _ => tokens.push(Token::Other),
        }
        rest = after;
    }
    Ok(tokens)
}

/// The length of the quoted thing that `rest` begins with. A doubled quote begins the next one.
fn quoted(rest: &str, quote: char) -> Result<usize, ConditionError> {
    let end = rest[1..].find(quote).ok_or(ConditionError::Quote)?;
    let inside = &rest[1..=end];
    if inside.contains(|c: char| c == '\\' || c.is_control()) {
        return Err(ConditionError::Character);
    }
    Ok(end + 2)
}
