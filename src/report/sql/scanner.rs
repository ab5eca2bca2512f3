//! Cuts SQL into tokens, by the rules of PostgreSQL's `scan.l` with
//! `standard_conforming_strings = on`.
//!
//! It knows only what is needed to find placeholders: operators come one character at a time, and
//! numbers are not checked.

use std::ops::Range;

use super::{SqlError, SqlErrorKind};

/// A piece of the statement: neither white space nor comment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    /// Byte offset of its first character.
    pub(super) start: usize,
    /// Byte offset behind its last character.
    pub(super) end: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// A key word or an identifier without quotes.
    Word,
    /// A string, a number or a quoted identifier.
    Literal,
    /// `:name`. The scanner itself gives a colon: what it means depends on where it stands.
    Placeholder,
    /// `(` or `[`
    Open(char),
    /// `)` or `]`
    Close(char),
    Comma,
    Semicolon,
    /// One colon that belongs to neither `::` nor `:=`.
    Colon,
    /// Any other character, and `::` and `:=`.
    Other,
}

impl TokenKind {
    /// True if an expression can end with this token.
    pub(super) fn ends_an_operand(self) -> bool {
        match self {
            Self::Word | Self::Literal | Self::Placeholder | Self::Close(_) => true,
            Self::Open(_) | Self::Comma | Self::Semicolon | Self::Colon | Self::Other => false,
        }
    }
}

pub(super) struct Scanner<'a> {
    sql: &'a str,
    /// Byte offset of what is read next; always at the start of a character.
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(sql: &'a str) -> Self {
        Self { sql, at: 0 }
    }

    /// The next token, `None` at the end.
    pub(super) fn next_token(&mut self) -> Result<Option<Token>, SqlError> {
        self.skip_blanks()?;
        let start = self.at;
        let Some(first) = self.rest().chars().next() else { return Ok(None) };
        let kind = match first {
            '\'' => self.string(start, Escapes::Doubled)?,
            '"' => self.quoted_identifier(start)?,
            '$' => self.dollar(start)?,
            ':' => self.colon(),
            '0'..='9' => self.number(),
            c if starts_word(c) => self.word(start)?,
            c => {
                self.at += c.len_utf8();
                match c {
                    '(' | '[' => TokenKind::Open(c),
                    ')' | ']' => TokenKind::Close(c),
                    ',' => TokenKind::Comma,
                    ';' => TokenKind::Semicolon,
                    _ => TokenKind::Other,
                }
            }
        };
        Ok(Some(Token { kind, start, end: self.at }))
    }

    /// The range of the word that starts exactly here, if one does. Reads nothing.
    pub(super) fn word_here(&self) -> Option<Range<usize>> {
        let rest = self.rest();
        rest.starts_with(starts_word).then(|| {
            let length = rest.find(|c| !continues_word(c)).unwrap_or(rest.len());
            self.at..self.at + length
        })
    }

    /// Goes on reading at the byte `offset`.
    pub(super) fn skip_to(&mut self, offset: usize) {
        self.at = offset;
    }

    fn rest(&self) -> &'a str {
        &self.sql[self.at..]
    }

    fn unterminated(&self, construct: &'static str, start: usize) -> SqlError {
        SqlError::new(SqlErrorKind::Unterminated(construct), self.sql, start)
    }

    fn skip_blanks(&mut self) -> Result<(), SqlError> {
        loop {
            let rest = self.rest();
            if rest.starts_with(is_space) {
                self.at += rest.find(|c| !is_space(c)).unwrap_or(rest.len());
            } else if rest.starts_with("--") {
                self.skip_line_comment();
            } else if rest.starts_with("/*") {
                self.skip_block_comment()?;
            } else {
                return Ok(());
            }
        }
    }

    fn skip_line_comment(&mut self) {
        let rest = self.rest();
        self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
    }

    /// Block comments nest in SQL, unlike in C.
    fn skip_block_comment(&mut self) -> Result<(), SqlError> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1;
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                let Some(c) = rest.chars().next() else {
                    return Err(self.unterminated("comment", start));
                };
                self.at += c.len_utf8();
            }
        }
    }

    /// Reads a word, and the string or identifier that it is the prefix of: `E'…'` has backslash
    /// escapes, `U&'…'`, `B'…'`, `X'…'` and `N'…'` have not.
    fn word(&mut self, start: usize) -> Result<TokenKind, SqlError> {
        let word = self.word_here().expect("called where a word starts");
        let prefix = &self.sql[word.clone()];
        self.at = word.end;
        let rest = self.rest();
        if prefix.eq_ignore_ascii_case("e") && rest.starts_with('\'') {
            self.string(start, Escapes::Backslash)
        } else if prefix.eq_ignore_ascii_case("u") && rest.starts_with("&'") {
            self.at += 1;
            self.string(start, Escapes::Doubled)
        } else if prefix.eq_ignore_ascii_case("u") && rest.starts_with("&\"") {
            self.at += 1;
            self.quoted_identifier(start)
        } else {
            Ok(TokenKind::Word)
        }
    }

    fn string(&mut self, start: usize, escapes: Escapes) -> Result<TokenKind, SqlError> {
        self.at += 1;
        loop {
            let Some(c) = self.rest().chars().next() else {
                return Err(self.unterminated("string", start));
            };
            self.at += c.len_utf8();
            match c {
                '\\' if escapes == Escapes::Backslash => {
                    self.at += self.rest().chars().next().map_or(0, char::len_utf8);
                }
                '\'' if self.rest().starts_with('\'') => self.at += 1,
                '\'' => match self.continuation() {
                    Some(offset) => self.at = offset,
                    None => return Ok(TokenKind::Literal),
                },
                _ => {}
            }
        }
    }

    /// A string goes on in the next line, with the same escapes, if a quote is the first thing
    /// there. The offset behind that quote.
    fn continuation(&self) -> Option<usize> {
        let mut ahead = Scanner { sql: self.sql, at: self.at };
        loop {
            let rest = ahead.rest();
            if rest.starts_with(is_space) {
                ahead.at += 1;
            } else if rest.starts_with("--") {
                ahead.skip_line_comment();
            } else {
                let has_newline = self.sql[self.at..ahead.at].contains(['\n', '\r']);
                return (has_newline && rest.starts_with('\'')).then_some(ahead.at + 1);
            }
        }
    }

    fn quoted_identifier(&mut self, start: usize) -> Result<TokenKind, SqlError> {
        self.at += 1;
        loop {
            let Some(length) = self.rest().find('"') else {
                return Err(self.unterminated("quoted identifier", start));
            };
            self.at += length + 1;
            if self.rest().starts_with('"') {
                self.at += 1;
            } else {
                return Ok(TokenKind::Literal);
            }
        }
    }

    fn dollar(&mut self, start: usize) -> Result<TokenKind, SqlError> {
        let after = &self.rest()[1..];
        if after.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(SqlError::new(SqlErrorKind::PositionalParameter, self.sql, start));
        }
        let tag_length = after.find(|c| !continues_tag(c)).unwrap_or(after.len());
        if !after[tag_length..].starts_with('$') {
            self.at += 1;
            return Ok(TokenKind::Other);
        }
        let delimiter = &self.rest()[..tag_length + 2];
        let body = start + delimiter.len();
        match self.sql[body..].find(delimiter) {
            Some(length) => {
                self.at = body + length + delimiter.len();
                Ok(TokenKind::Literal)
            }
            None => Err(self.unterminated("dollar-quoted string", start)),
        }
    }

    fn colon(&mut self) -> TokenKind {
        let rest = self.rest();
        if rest.starts_with("::") || rest.starts_with(":=") {
            self.at += 2;
            TokenKind::Other
        } else {
            self.at += 1;
            TokenKind::Colon
        }
    }

    fn number(&mut self) -> TokenKind {
        let rest = self.rest();
        let length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
        self.at += length.unwrap_or(rest.len());
        TokenKind::Literal
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Escapes {
    /// Only `''`.
    Doubled,
    /// `''` and backslashes.
    Backslash,
}

/// White space between tokens. PostgreSQL counts no other Unicode spaces.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn starts_word(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || !c.is_ascii()
}

fn continues_word(c: char) -> bool {
    starts_word(c) || c.is_ascii_digit() || c == '$'
}

/// The tag of a dollar quote is a word without dollar signs; that it does not start with a digit
/// is checked before.
fn continues_tag(c: char) -> bool {
    starts_word(c) || c.is_ascii_digit()
}
