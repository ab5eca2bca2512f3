//! Templates: definitions kept as files.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::{Definition, DefinitionError, Slug, SlugError};

/// The largest template file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why a template is refused. Each names its file.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The folder or a file cannot be read, or is not UTF-8.
    #[error("cannot read {}", path.display())]
    Read {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file that is larger than any template.
    #[error("{}: a template's file must be at most {MAX_FILE_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file whose name gives no slug.
    #[error("{}: the name of a template", path.display())]
    Slug {
        /// The file.
        path: PathBuf,
        /// What was expected.
        #[source]
        source: SlugError,
    },
    /// A `.toml` without its `.sql`, or the other way round.
    #[error("{}: must have {} beside it", path.display(), missing.display())]
    Orphan {
        /// The file that is there.
        path: PathBuf,
        /// The name of the one that is not.
        missing: PathBuf,
    },
    /// The two files are no definition. Its faults name the files, without the folder.
    #[error("{0}")]
    Definition(DefinitionError),
}

/// Reads every `<slug>.toml` of the folder `dir` with its `<slug>.sql`, sorted by slug. Files of
/// other kinds and folders are passed over.
///
/// # Errors
///
/// Everything that is wrong with any of them, sorted by file.
pub fn load_templates(dir: &Path) -> Result<Vec<Definition>, Vec<TemplateError>> {
    let mut errors = Vec::new();
    let mut definitions = Vec::new();
    for (stem, pair) in find_pairs(dir).map_err(|error| vec![error])? {
        match load(dir, &stem, pair) {
            Ok(definition) => definitions.push(definition),
            Err(error) => errors.push(error),
        }
    }
    definitions.sort_by(|a, b| a.slug().cmp(b.slug()));
    if errors.is_empty() { Ok(definitions) } else { Err(errors) }
}

/// Which of the two files of a template are there.
#[derive(Clone, Copy, Default)]
struct Pair {
    toml: bool,
    sql: bool,
}

fn find_pairs(dir: &Path) -> Result<BTreeMap<String, Pair>, TemplateError> {
    let unreadable = |source| TemplateError::Read { path: dir.to_owned(), source };
    let mut pairs: BTreeMap<String, Pair> = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let name = name.to_string_lossy();
        // Editors leave hidden files beside those they have open.
        if name.starts_with('.') {
            continue;
        }
        match name.rsplit_once('.') {
            Some((stem, "toml")) => pairs.entry(stem.to_owned()).or_default().toml = true,
            Some((stem, "sql")) => pairs.entry(stem.to_owned()).or_default().sql = true,
            Some(_) | None => {}
        }
    }
    Ok(pairs)
}

fn load(dir: &Path, stem: &str, pair: Pair) -> Result<Definition, TemplateError> {
    let [toml, sql] = ["toml", "sql"].map(|extension| dir.join(format!("{stem}.{extension}")));
    let (present, missing) = if pair.toml { (&toml, &sql) } else { (&sql, &toml) };
    if !(pair.toml && pair.sql) {
        let missing = missing.file_name().map(PathBuf::from).unwrap_or_default();
        return Err(TemplateError::Orphan { path: present.clone(), missing });
    }
    let slug: Slug =
        stem.parse().map_err(|source| TemplateError::Slug { path: toml.clone(), source })?;
    Definition::from_template(slug, &read(&toml)?, &read(&sql)?).map_err(TemplateError::Definition)
}

fn read(path: &Path) -> Result<String, TemplateError> {
    let unreadable = |source| TemplateError::Read { path: path.to_owned(), source };
    if std::fs::metadata(path).map_err(unreadable)?.len() > MAX_FILE_BYTES {
        return Err(TemplateError::TooLarge { path: path.to_owned() });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}
