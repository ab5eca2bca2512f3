//! From the words of `classification.toml` to what is done, and whether what is written fits its
//! column. The check of policies and the plan of an erasure both ask here, before any row is read.

use std::num::NonZeroU32;

use super::json::Scrub;
use super::{NetworkBits, TokenShape, Treatment, Truncation};
use crate::policy::{Classification, Treatment as Declared, TruncateTo};
use crate::retention::catalog::{Column, Table};

/// Why a treatment cannot be that of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfit {
    /// It makes no sense of the column's type.
    WrongType,
    /// It writes NULL, which the column refuses.
    WritesNull,
    /// It writes more characters than the column holds.
    TooLong {
        /// At most so many.
        writes: u32,
        /// So many fit.
        fits: i32,
    },
    /// The column is unique, and it may write a value twice.
    NotUnique,
    /// The column is generated from others.
    Generated,
    /// The column is a part of the primary key.
    InKey,
    /// The column is a part of a foreign key.
    InForeignKey,
}

impl Misfit {
    /// What is wrong and what to do, of a treatment by this name.
    pub fn explain(self, name: &str, column: &Column) -> String {
        match self {
            Self::WrongType => format!("is {}, which `{name}` cannot treat", column.type_sql),
            Self::WritesNull => {
                format!("is NOT NULL, and `{name}` writes NULL: take `constant` or `token`")
            }
            Self::TooLong { writes, fits } => {
                format!("holds {fits} characters, and `{name}` writes up to {writes}")
            }
            Self::NotUnique => {
                format!("is unique, and `{name}` writes a value twice: take `token`")
            }
            Self::Generated => "is generated: treat the columns that it is made from".to_owned(),
            Self::InKey => "is part of the primary key: it can only be kept".to_owned(),
            Self::InForeignKey => "is a foreign key: it can only be kept".to_owned(),
        }
    }
}

impl Treatment {
    /// What a declared treatment does.
    pub fn of(declared: &Declared, classification: &Classification) -> Self {
        match declared {
            Declared::Null => Self::Null,
            Declared::Constant { value } => Self::Constant(value.clone()),
            Declared::Token { length, prefix, suffix } => Self::Token(TokenShape {
                prefix: prefix.clone(),
                chars: (*length).try_into().unwrap_or(TokenShape::plain().chars),
                suffix: suffix.clone(),
            }),
            Declared::Truncate { to: TruncateTo::Year } => Self::Truncate(Truncation::Year),
            Declared::Truncate { to: TruncateTo::Month } => Self::Truncate(Truncation::Month),
            Declared::Truncate { to: TruncateTo::Characters(chars) } => {
                match NonZeroU32::new(u32::from(*chars)) {
                    Some(chars) => Self::Truncate(Truncation::Chars(chars)),
                    None => Self::Constant(String::new()),
                }
            }
            Declared::Network { v4_bits, v6_bits } => {
                Self::Network(NetworkBits { v4: *v4_bits, v6: *v6_bits })
            }
            Declared::Family => Self::Family,
            Declared::ScrubJson { of, keys } => {
                let named = of.iter().filter_map(|table| classification.tables.get(table));
                let named = named.flat_map(|table| &table.columns).filter(|(_, column)| {
                    column.treatment().is_some_and(|t| !matches!(t, Declared::Keep { .. }))
                });
                let named = named.map(|(name, _)| name.as_str());
                Self::ScrubJson(Scrub::new(named.chain(keys.iter().map(String::as_str)), vec![]))
            }
            Declared::UnusablePassword => Self::UnusablePassword,
            Declared::DeleteObject => Self::DeleteObject,
            Declared::Keep { reason: _ } => Self::Keep,
        }
    }

    /// Everything that is in the way of treating a column of a table so. What is kept always fits.
    pub fn misfits(&self, table: &Table, column: &Column) -> Vec<Misfit> {
        if *self == Self::Keep {
            return Vec::new();
        }
        let facts = self.facts();
        let mut misfits = Vec::new();
        if !self.takes(column) {
            misfits.push(Misfit::WrongType);
        }
        if facts.can_write_null && column.not_null {
            misfits.push(Misfit::WritesNull);
        }
        if let (Some(writes), Some(fits)) = (facts.max_chars, column.max_chars)
            && i64::from(writes) > i64::from(fits)
        {
            misfits.push(Misfit::TooLong { writes, fits });
        }
        // NULL is never twice the same value.
        let is_unique = table.unique_keys.iter().any(|key| key.columns.contains(&column.name));
        if is_unique && !facts.keeps_unique && !facts.can_write_null {
            misfits.push(Misfit::NotUnique);
        }
        if column.is_generated {
            misfits.push(Misfit::Generated);
        }
        if table.primary_key.contains(&column.name) {
            misfits.push(Misfit::InKey);
        }
        if table.references.iter().any(|key| key.child_columns.contains(&column.name)) {
            misfits.push(Misfit::InForeignKey);
        }
        misfits
    }

    /// Whether it makes sense of a column's type.
    fn takes(&self, column: &Column) -> bool {
        let is_text = column.category == 'S';
        match self {
            Self::Null | Self::Constant(_) | Self::Keep => true,
            Self::Truncate(Truncation::Year | Truncation::Month) => {
                matches!(column.base_type.as_str(), "date" | "timestamp" | "timestamptz")
            }
            Self::Network(_) => is_text || column.base_type == "inet",
            Self::ScrubJson(_) => matches!(column.base_type.as_str(), "json" | "jsonb"),
            Self::Token(_)
            | Self::Truncate(Truncation::Chars(_))
            | Self::Family
            | Self::UnusablePassword
            | Self::DeleteObject => is_text,
        }
    }
}
