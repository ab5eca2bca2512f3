//! `classification.toml`: what every column of every table is, and what becomes of it when the
//! person it tells of is erased.

use std::collections::BTreeMap;

use serde::Serialize;

use super::account::{self, Account};
use super::digest;
use super::fault::PolicyFault;
use super::name::{ColumnName, NameError, TableName};
use super::reader::{Item, Reader, Source};

/// The file's name in the jobs folder.
pub const CLASSIFICATION_FILE: &str = "classification.toml";

/// A keyed token has this many characters unless the file says otherwise: 120 bits.
const DEFAULT_TOKEN_LENGTH: u8 = 24;
const MAX_LINKS: usize = 20;

/// The classes of all tables. Tables of the archive schema are classed as those they come from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Classification {
    /// Sorted by name.
    pub tables: BTreeMap<TableName, ClassifiedTable>,
}

impl Classification {
    /// SHA-256 of the content in normal form, in hex: comments, order and spaces do not count.
    pub fn digest(&self) -> String {
        digest(self)
    }

    /// Reads the text of `classification.toml`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn from_toml(text: &str) -> Result<Self, Vec<PolicyFault>> {
        let source = Source::new(CLASSIFICATION_FILE, text);
        let root = source.parse();
        let built = root.as_ref().and_then(|root| read_tables(&Reader::new(&source, root)));
        drop(root);
        source.finish(built)
    }
}

/// What is known of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassifiedTable {
    /// How its rows are tied to a person. Empty: they are not.
    pub subject: Vec<SubjectLink>,
    /// How its rows, which are people, are closed and named. `None`: they are not people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
    /// Sorted by name.
    pub columns: BTreeMap<ColumnName, ClassifiedColumn>,
}

/// How a row is tied to a person. In an archive, where there are no foreign keys, the live table's
/// tell what the columns mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SubjectLink {
    /// A foreign key of the row to the person's.
    Column(ColumnName),
    /// The person's key beside a column that says of which table the key is.
    Named {
        /// The column that says so.
        discriminator: ColumnName,
        /// What it says where the row is about a person.
        value: String,
        /// The column with the key.
        id: ColumnName,
    },
    /// A foreign key to a row that is itself tied to the person.
    Through(ColumnName),
}

/// What a column is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ClassifiedColumn {
    /// `none`: says nothing of a person.
    Plain {
        /// Always [`Class::None`].
        class: NoClass,
    },
    /// Says something, and so is treated.
    Treated {
        /// How much it says.
        class: Sensitivity,
        /// What becomes of it.
        treatment: Treatment,
    },
}

/// The class `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoClass {
    /// `none`
    None,
}

/// What a column says of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sensitivity {
    /// Identifies.
    Personal,
    /// Helps to identify.
    Quasi,
    /// May hold anything.
    FreeText,
}

/// The class of a column, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Identifies.
    Personal,
    /// Helps to identify.
    Quasi,
    /// May hold anything; what is left in it is reported.
    FreeText,
    /// Says nothing of a person.
    None,
}

impl Class {
    /// As in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Personal => "personal",
            Self::Quasi => "quasi",
            Self::FreeText => "free_text",
            Self::None => "none",
        }
    }
}

impl ClassifiedColumn {
    /// The class.
    pub fn class(&self) -> Class {
        match self {
            Self::Plain { class: NoClass::None } => Class::None,
            Self::Treated { class: Sensitivity::Personal, .. } => Class::Personal,
            Self::Treated { class: Sensitivity::Quasi, .. } => Class::Quasi,
            Self::Treated { class: Sensitivity::FreeText, .. } => Class::FreeText,
        }
    }

    /// What becomes of it, if anything has to.
    pub fn treatment(&self) -> Option<&Treatment> {
        match self {
            Self::Plain { .. } => None,
            Self::Treated { treatment, .. } => Some(treatment),
        }
    }
}

/// What becomes of a column's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "treat", rename_all = "snake_case")]
pub enum Treatment {
    /// SQL null.
    Null,
    /// The same for everybody.
    Constant {
        /// As PostgreSQL reads it for the column's type.
        value: String,
    },
    /// `prefix`, a keyed HMAC of `length` characters, `suffix`.
    Token {
        /// Characters of the token alone, 16 to 64.
        length: u8,
        /// Before it.
        prefix: String,
        /// After it.
        suffix: String,
    },
    /// The start of the value.
    Truncate {
        /// How much of it is left.
        to: TruncateTo,
    },
    /// The network of an IP address.
    Network {
        /// Bits kept of an IPv4 address.
        v4_bits: u8,
        /// Bits kept of an IPv6 address.
        v6_bits: u8,
    },
    /// The browser's or program's family of a user agent.
    Family,
    /// Values of keys in JSON, at any depth.
    ScrubJson {
        /// The tables whose treated columns name the keys.
        of: Vec<TableName>,
        /// More keys.
        keys: Vec<String>,
    },
    /// A password hash that no password has.
    UnusablePassword,
    /// The object that the value names is deleted, then the value is null.
    DeleteObject,
    /// Stays, and why.
    Keep {
        /// Why it may stay.
        reason: String,
    },
}

impl Treatment {
    /// As in the file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Constant { .. } => "constant",
            Self::Token { .. } => "token",
            Self::Truncate { .. } => "truncate",
            Self::Network { .. } => "network",
            Self::Family => "family",
            Self::ScrubJson { .. } => "scrub_json",
            Self::UnusablePassword => "unusable_password",
            Self::DeleteObject => "delete_object",
            Self::Keep { .. } => "keep",
        }
    }
}

/// How much of a value is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TruncateTo {
    /// The first of January of a date's or instant's year.
    Year,
    /// The first day of its month.
    Month,
    /// The first so many characters of a text.
    Characters(u8),
}

fn read_tables(root: &Reader<'_, '_>) -> Option<Classification> {
    let mut tables = BTreeMap::new();
    let mut whole = true;
    for (name, item) in root.rest() {
        let name = name.parse::<TableName>().map_err(|error| item.fault(error.to_string())).ok();
        let table = item.table().and_then(|reader| read_table(&reader));
        match name.zip(table) {
            Some((name, table)) => {
                if tables.insert(name, table).is_some() {
                    item.fault("is there twice");
                }
            }
            None => whole = false,
        }
    }
    whole.then_some(Classification { tables })
}

fn read_table(table: &Reader<'_, '_>) -> Option<ClassifiedTable> {
    let subject = match table.optional("subject") {
        Some(links) => links.each(MAX_LINKS, read_link)?,
        None => Vec::new(),
    };
    let account = match table.optional("account") {
        Some(item) => Some(account::read(&item)?),
        None => None,
    };
    let mut columns = BTreeMap::new();
    let mut whole = true;
    for (name, item) in table.rest() {
        let name = name.parse().map_err(|error: NameError| item.fault(error.to_string())).ok();
        match name.zip(item.table().and_then(read_column)) {
            Some((name, column)) => {
                columns.insert(name, column);
            }
            None => whole = false,
        }
    }
    whole.then_some(ClassifiedTable { subject, account, columns })
}

fn read_link(item: &Item<'_, '_>) -> Option<SubjectLink> {
    if item.is_text() {
        return item.parse().map(SubjectLink::Column);
    }
    let table = item.table()?;
    if let Some(through) = table.optional("through") {
        table.finish();
        return through.parse().map(SubjectLink::Through);
    }
    let id = table.required("id")?.parse();
    match table.rest().as_slice() {
        [(discriminator, value)] => Some(SubjectLink::Named {
            discriminator: discriminator
                .parse()
                .map_err(|error: NameError| value.fault(error.to_string()))
                .ok()?,
            value: value.text()?.to_owned(),
            id: id?,
        }),
        _ => {
            item.fault(
                "must be a column, { through = \"column\" } or { column = \"value\", id = \"column\" }",
            );
            None
        }
    }
}

const CLASSES: [(&str, Option<Sensitivity>); 4] = [
    ("personal", Some(Sensitivity::Personal)),
    ("quasi", Some(Sensitivity::Quasi)),
    ("free_text", Some(Sensitivity::FreeText)),
    ("none", None),
];

fn read_column(column: Reader<'_, '_>) -> Option<ClassifiedColumn> {
    let class = column.required("class").and_then(|item| item.choose(&CLASSES));
    let built = match class? {
        None => Some(ClassifiedColumn::Plain { class: NoClass::None }),
        Some(class) => {
            read_treatment(&column).map(|treatment| ClassifiedColumn::Treated { class, treatment })
        }
    };
    column.finish();
    built
}

fn read_treatment(column: &Reader<'_, '_>) -> Option<Treatment> {
    let treat = column.required("treat")?;
    let text = |key, default: &str| match column.optional(key) {
        Some(item) => item.text().map(str::to_owned),
        None => Some(default.to_owned()),
    };
    Some(match treat.text()? {
        "null" => Treatment::Null,
        "constant" => Treatment::Constant { value: column.required("value")?.text()?.to_owned() },
        "token" => Treatment::Token {
            length: match column.optional("length") {
                Some(item) => u8::try_from(item.whole(16..65)?).ok()?,
                None => DEFAULT_TOKEN_LENGTH,
            },
            prefix: text("prefix", "")?,
            suffix: text("suffix", "")?,
        },
        "truncate" => Treatment::Truncate { to: read_truncate_to(&column.required("to")?)? },
        "network" => read_network(column)?,
        "family" => Treatment::Family,
        "scrub_json" => read_scrub(column)?,
        "unusable_password" => Treatment::UnusablePassword,
        "delete_object" => Treatment::DeleteObject,
        "keep" => Treatment::Keep { reason: read_reason(&column.required("reason")?)? },
        _ => {
            treat.fault(
                "must be one of `null`, `constant`, `token`, `truncate`, `network`, `family`, \
                 `scrub_json`, `unusable_password`, `delete_object`, `keep`",
            );
            return None;
        }
    })
}

fn read_truncate_to(item: &Item<'_, '_>) -> Option<TruncateTo> {
    if item.is_text() {
        return item.choose(&[("year", TruncateTo::Year), ("month", TruncateTo::Month)]);
    }
    Some(TruncateTo::Characters(u8::try_from(item.whole(1..256)?).ok()?))
}

fn read_network(column: &Reader<'_, '_>) -> Option<Treatment> {
    let bits = column.required("bits")?;
    let [v4, v6] = <[_; 2]>::try_from(bits.array(2)?).ok().or_else(|| {
        bits.fault("must be two numbers: the bits kept of IPv4 and of IPv6, like [24, 48]");
        None
    })?;
    Some(Treatment::Network {
        v4_bits: u8::try_from(v4.whole(0..33)?).ok()?,
        v6_bits: u8::try_from(v6.whole(0..129)?).ok()?,
    })
}

fn read_scrub(column: &Reader<'_, '_>) -> Option<Treatment> {
    const MOST: usize = 200;
    let of = match column.optional("of") {
        Some(item) if item.is_text() => vec![item.parse()?],
        Some(item) => item.each(MOST, Item::parse)?,
        None => Vec::new(),
    };
    let keys = match column.optional("keys") {
        Some(item) => item.each(MOST, |key| key.text().map(str::to_owned))?,
        None => Vec::new(),
    };
    if of.is_empty() && keys.is_empty() {
        column.fault("must say which keys: `of = \"table\"`, `keys = [\"name\"]` or both");
        return None;
    }
    Some(Treatment::ScrubJson { of, keys })
}

fn read_reason(item: &Item<'_, '_>) -> Option<String> {
    let reason = item.text()?.trim();
    if reason.is_empty() {
        item.fault("must say why the value may stay");
        return None;
    }
    Some(reason.to_owned())
}
