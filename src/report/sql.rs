//! SQL with `:name` placeholders.
//!
//! [`NamedSql`] reads a query as PostgreSQL's own scanner does, as far as is needed to tell a
//! placeholder from what only looks like one: text in strings (`'…'`, `E'…'`, `U&'…'`, `$tag$…$tag$`),
//! quoted identifiers, comments (nested ones too), casts (`::`), named arguments (`:=`) and array
//! slices are left as they stand. Values are never pasted: a placeholder becomes `($n::type)`, where
//! one name has one number however often it is used. The parentheses keep it one operand wherever
//! it stands: `:codes[1]` would otherwise read as the type `text[][1]`, and `limit:n` as one word.
//!
//! **Colons in square brackets.** `tags[:n]` could be a subscript or a slice without a lower bound.
//! The rule: inside a subscript, a colon that directly follows an operand (`tags[first:last]`)
//! separates the bounds of a slice, and every other `:name` (`tags[:n]`, `tags[1 : :n]`) is a
//! placeholder. Write `tags[: n]`, with a space, for a slice up to the column `n`. An `array[…]`
//! constructor has no slices, so every `:name` in it is a placeholder.
//!
//! Nothing here touches a database: whether the query is valid SQL, PostgreSQL says when it
//! prepares it.

use std::fmt;
use std::ops::Range;

use self::scanner::{Scanner, Token, TokenKind};

mod scanner;
#[cfg(test)]
mod tests;

/// The longest query, in bytes: far above any report, far below what would trouble the scanner.
pub const MAX_SQL_BYTES: usize = 256 * 1024;

/// The most names in one query.
pub const MAX_NAMES: usize = 100;

/// One SQL statement with named placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSql {
    /// The statement, without a closing semicolon and what follows its last token.
    text: String,
    /// Names in the order of their first use: the n-th (from 1) is `$n`.
    names: Vec<Name>,
    /// Where the placeholders stand in `text`, in order.
    uses: Vec<Use>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    name: String,
    first_use: Position,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Use {
    range: Range<usize>,
    name: usize,
}

impl NamedSql {
    /// Reads one statement. A single semicolon at its end is dropped.
    ///
    /// # Errors
    ///
    /// The query is empty, too long, holds U+0000, a second statement, a positional parameter
    /// (`$1`), a placeholder that is not in `snake_case`, or something opened and not closed.
    pub fn parse(sql: &str) -> Result<Self, SqlError> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(SqlError { kind: SqlErrorKind::TooLong, position: None });
        }
        if let Some(offset) = sql.find('\0') {
            return Err(SqlError::new(SqlErrorKind::NulCharacter, sql, offset));
        }
        Parser::new(sql).parse()
    }

    /// The names in the order of their first use, which is the order of `$1`, `$2`, ….
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(|name| name.name.as_str())
    }

    /// Where `name` is used first, `None` if it is not used.
    pub fn first_use(&self, name: &str) -> Option<Position> {
        self.names.iter().find(|known| known.name == name).map(|known| known.first_use)
    }

    /// The statement with `($n::type)` in place of each placeholder. `pg_type` is asked once for
    /// each name.
    pub fn render<'a>(&'a self, pg_type: impl FnMut(&'a str) -> &'a str) -> String {
        let types: Vec<&str> = self.names().map(pg_type).collect();
        let mut rendered = String::with_capacity(self.text.len() + self.uses.len() * 16);
        let mut copied = 0;
        for Use { range, name } in &self.uses {
            rendered.push_str(&self.text[copied..range.start]);
            rendered.push_str(&format!("(${}::{})", name + 1, types[*name]));
            copied = range.end;
        }
        rendered.push_str(&self.text[copied..]);
        rendered
    }
}

/// A place in a text, both counted from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

impl Position {
    /// The position of the byte `offset` of `text`, or of its end if it lies beyond.
    pub(in crate::report) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A query that cannot be a report's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct SqlError {
    kind: SqlErrorKind,
    position: Option<Position>,
}

impl SqlError {
    fn new(kind: SqlErrorKind, sql: &str, offset: usize) -> Self {
        Self { kind, position: Some(Position::of(sql, offset)) }
    }

    /// What is wrong.
    pub fn kind(&self) -> SqlErrorKind {
        self.kind
    }

    /// Where it is, if it is in one place.
    pub fn position(&self) -> Option<Position> {
        self.position
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(position) = self.position {
            write!(f, "{position}: ")?;
        }
        self.kind.fmt(f)
    }
}

/// What is wrong with a query, told without its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SqlErrorKind {
    /// Nothing but white space, comments and semicolons.
    Empty,
    /// Longer than [`MAX_SQL_BYTES`].
    TooLong,
    /// PostgreSQL cannot hold U+0000 in text.
    NulCharacter,
    /// A string, comment, quoted identifier or bracket without its end: what was opened, for
    /// example `string`. The position is where it was opened.
    Unterminated(&'static str),
    /// A closing bracket that does not fit what is open.
    Unbalanced(char),
    /// A semicolon with more behind it.
    SecondStatement,
    /// `$1`: its number would mean another value than its author thinks.
    PositionalParameter,
    /// `:Name`: parameters are declared in `snake_case`.
    PlaceholderName,
    /// More than [`MAX_NAMES`] names; the position is that of the first too many.
    TooManyNames,
}

impl fmt::Display for SqlErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the query must not be empty"),
            Self::TooLong => write!(f, "the query must be at most {MAX_SQL_BYTES} bytes"),
            Self::NulCharacter => f.write_str("the query must not hold the character U+0000"),
            Self::Unterminated(construct) => write!(f, "this {construct} must be closed"),
            Self::Unbalanced(bracket) => write!(f, "this `{bracket}` closes nothing"),
            Self::SecondStatement => {
                f.write_str("a report is one statement: nothing may follow this semicolon")
            }
            Self::PositionalParameter => {
                f.write_str("parameters are written `:name`, not by number")
            }
            Self::TooManyNames => write!(f, "a query has at most {MAX_NAMES} parameters"),
            Self::PlaceholderName => f.write_str(
                "the name of a parameter is lower case letters, digits and underscores; a colon \
                 that is no parameter's needs a space behind it",
            ),
        }
    }
}

/// True for `snake_case` names, as parameters have: a lower case ASCII letter or underscore, then
/// letters, digits and underscores.
pub(in crate::report) fn is_placeholder_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_')
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Parenthesis,
    /// `array[…]` and the brackets nested in it.
    Constructor,
    /// Every other `[…]`, where slices can stand.
    Subscript,
}

struct Parser<'a> {
    sql: &'a str,
    scanner: Scanner<'a>,
    /// What is open, with where it was opened. Bounded by [`MAX_SQL_BYTES`].
    open: Vec<(Bracket, usize)>,
    previous: Option<Token>,
    names: Vec<Name>,
    uses: Vec<Use>,
}

impl<'a> Parser<'a> {
    fn new(sql: &'a str) -> Self {
        Self {
            sql,
            scanner: Scanner::new(sql),
            open: Vec::new(),
            previous: None,
            names: Vec::new(),
            uses: Vec::new(),
        }
    }

    fn parse(mut self) -> Result<NamedSql, SqlError> {
        while let Some(mut token) = self.scanner.next_token()? {
            match token.kind {
                TokenKind::Semicolon => {
                    self.end_of_statement(token)?;
                    break;
                }
                TokenKind::Colon => token = self.colon(token)?,
                TokenKind::Open(bracket) => self.open_bracket(bracket, token),
                TokenKind::Close(bracket) => self.close_bracket(bracket, token)?,
                TokenKind::Word
                | TokenKind::Literal
                | TokenKind::Placeholder
                | TokenKind::Comma
                | TokenKind::Other => {}
            }
            self.previous = Some(token);
        }
        if let Some((bracket, start)) = self.open.last() {
            let construct = match bracket {
                Bracket::Parenthesis => "parenthesis",
                Bracket::Constructor | Bracket::Subscript => "square bracket",
            };
            return Err(self.error(SqlErrorKind::Unterminated(construct), *start));
        }
        let empty = SqlError { kind: SqlErrorKind::Empty, position: None };
        let end = self.previous.ok_or(empty)?.end;
        Ok(NamedSql { text: self.sql[..end].to_owned(), names: self.names, uses: self.uses })
    }

    fn end_of_statement(&mut self, semicolon: Token) -> Result<(), SqlError> {
        match self.scanner.next_token()? {
            Some(_) => Err(self.error(SqlErrorKind::SecondStatement, semicolon.start)),
            None => Ok(()),
        }
    }

    /// Reads the name after a single colon, unless it is the colon of a slice or stands alone.
    fn colon(&mut self, colon: Token) -> Result<Token, SqlError> {
        let separates_slice = self.open.last().is_some_and(|(b, _)| *b == Bracket::Subscript)
            && self.previous.is_some_and(|previous| {
                previous.end == colon.start && previous.kind.ends_an_operand()
            });
        let Some(word) = self.scanner.word_here().filter(|_| !separates_slice) else {
            return Ok(colon);
        };
        let name = &self.sql[word.clone()];
        if !is_placeholder_name(name) {
            return Err(self.error(SqlErrorKind::PlaceholderName, colon.start));
        }
        self.scanner.skip_to(word.end);
        let index = match self.names.iter().position(|known| known.name == name) {
            Some(index) => index,
            None if self.names.len() == MAX_NAMES => {
                return Err(self.error(SqlErrorKind::TooManyNames, colon.start));
            }
            None => {
                let first_use = Position::of(self.sql, colon.start);
                self.names.push(Name { name: name.to_owned(), first_use });
                self.names.len() - 1
            }
        };
        self.uses.push(Use { range: colon.start..word.end, name: index });
        Ok(Token { kind: TokenKind::Placeholder, start: colon.start, end: word.end })
    }

    fn open_bracket(&mut self, bracket: char, token: Token) {
        let kind = if bracket == '(' {
            Bracket::Parenthesis
        } else if self.starts_constructor() {
            Bracket::Constructor
        } else {
            Bracket::Subscript
        };
        self.open.push((kind, token.start));
    }

    fn starts_constructor(&self) -> bool {
        let Some(previous) = self.previous else { return false };
        match previous.kind {
            TokenKind::Word => self.sql[previous.start..previous.end].eq_ignore_ascii_case("array"),
            TokenKind::Open('[') | TokenKind::Comma => {
                self.open.last().is_some_and(|(b, _)| *b == Bracket::Constructor)
            }
            TokenKind::Literal
            | TokenKind::Placeholder
            | TokenKind::Open(_)
            | TokenKind::Close(_)
            | TokenKind::Semicolon
            | TokenKind::Colon
            | TokenKind::Other => false,
        }
    }

    fn close_bracket(&mut self, bracket: char, token: Token) -> Result<(), SqlError> {
        match self.open.pop() {
            Some((open, _)) if (open == Bracket::Parenthesis) == (bracket == ')') => Ok(()),
            Some(_) | None => Err(self.error(SqlErrorKind::Unbalanced(bracket), token.start)),
        }
    }

    fn error(&self, kind: SqlErrorKind, offset: usize) -> SqlError {
        SqlError::new(kind, self.sql, offset)
    }
}
