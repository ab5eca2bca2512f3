//! Which entries that purges wrote to the ledger count.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{About, CertificateError, Document, PAGE, certificates, record};
use crate::retention::ledger::Purge;

/// What certificates say of entries that purges wrote to the ledger.
#[derive(Debug, Default)]
pub struct CertifiedPurges {
    named: BTreeSet<String>,
    ended: BTreeMap<i64, Vec<Ended>>,
}

/// The end of a run.
#[derive(Debug)]
struct Ended {
    as_of: Option<DateTime<Utc>>,
    attempts: i64,
}

impl CertifiedPurges {
    /// Reads the chain.
    ///
    /// # Errors
    /// The database's.
    pub async fn read(db: &PgPool) -> Result<Self, CertificateError> {
        let mut certified = Self::default();
        let mut after = 0;
        loop {
            let page = certificates::list_after(db, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(certified) };
            after = last.id;
            for row in page {
                let Some(About::Run(id)) = About::read(&row.subject) else { continue };
                let Ok(document) = serde_json::from_str(&row.document) else { continue };
                certified.add(id, &document);
            }
        }
    }

    /// Adds a certificate of a run.
    pub(super) fn add(&mut self, run: i64, document: &Document) {
        self.named.extend(document.ledger.iter().map(|object| object.path.clone()));
        if record::status_of(&document.record).is_some_and(|status| status.is_final()) {
            let ended = Ended {
                as_of: serde_json::from_value(document.record["as_of"].clone()).ok(),
                attempts: document.record["attempts"].as_i64().unwrap_or_default(),
            };
            self.ended.entry(run).or_default().push(ended);
        }
    }

    /// Whether an entry tells of people who did not go: the attempt that wrote it has ended, and the
    /// run's certificate does not name it.
    pub fn is_void(&self, path: &str, purge: &Purge) -> bool {
        let ended = self.ended.get(&purge.run).into_iter().flatten();
        let mut ended = ended.filter(|ended| ended.as_of == Some(purge.as_of));
        !self.named.contains(path) && ended.any(|ended| ended.attempts >= purge.attempt.into())
    }
}
