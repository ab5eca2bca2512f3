//! Files of reports that may name a person: those of reports that read a table with treated
//! columns, and those that the person ran. They expire: the objects go first, then the state.
//!
//! Nobody can look into every format of every file, so all of them go. A person is erased weeks
//! after the request, and most results have expired by then.

use chrono::{DateTime, Utc};

use super::{EraseError, Eraser, People};
use crate::db::audit::{self, Actor};
use crate::db::executions;
use crate::db::report_deliveries;
use crate::store::execution_folder;
use crate::store::key::copy_folder;

/// Results that are expired between two looks.
const BATCH: i64 = 100;

impl Eraser<'_> {
    pub(super) async fn expire_results(
        &self,
        people: &People<'_>,
        acted_at: DateTime<Utc>,
    ) -> Result<(), EraseError> {
        let pattern = self.pattern();
        loop {
            let due =
                executions::list_naming(self.db, &pattern, acted_at, &people.ids, BATCH).await?;
            if due.is_empty() {
                return Ok(());
            }
            for result in due {
                self.store.remove_folder(&execution_folder(result.created_at, result.id)).await?;
                for folder in report_deliveries::copies_of(self.db, result.id).await? {
                    self.store.remove_folder(&copy_folder(&folder, result.id)).await?;
                }
                let mut tx = self.db.begin().await?;
                if executions::expire_now(&mut tx, result.id).await? {
                    let event = audit::Event {
                        action: "execution.expired",
                        entity_type: "report_executions",
                        entity_id: Some(result.id),
                        details: serde_json::json!({ "because": "erasure" }),
                    };
                    audit::record(&mut tx, &Actor::system(), event).await?;
                }
                tx.commit().await?;
            }
        }
    }

    /// Whether a report that read before the act has a result, or still runs.
    pub(super) async fn results_remain(
        &self,
        people: &People<'_>,
        acted_at: DateTime<Utc>,
    ) -> Result<bool, EraseError> {
        let pattern = self.pattern();
        Ok(executions::is_naming_open(self.db, &pattern, acted_at, &people.ids).await?)
    }

    /// Matches SQL that speaks of a table with treated columns.
    fn pattern(&self) -> String {
        let mut names: Vec<_> =
            self.plan.visits.iter().map(|visit| escape(visit.table.name.as_str())).collect();
        names.sort();
        names.dedup();
        format!("\\m({})\\M", names.join("|"))
    }
}

fn escape(name: &str) -> String {
    let special = |c: char| !c.is_alphanumeric() && c != '_';
    name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}
