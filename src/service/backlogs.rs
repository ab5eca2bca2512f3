//! What policies have before them, looked at from time to time and told by metrics.

use super::{ServiceError, Services};
use crate::db::policy_backlogs::{self, NewBacklog};
use crate::policy::{Kind, Policy};
use crate::retention::plan::Preview;

/// A look that takes longer is left for a person to take.
const LOOK_TIMEOUT: &str = "60s";
/// Policies that metrics tell of: a label has no more values than that.
const MAX_TOLD: i64 = 200;

/// A gauge of a policy and what it says.
const GAUGES: [(&str, &str); 10] = [
    ("registrar_policy_backlog_rows", "Rows that a run would do, when somebody last looked."),
    ("registrar_policy_held_rows", "Rows that are old enough and under a hold."),
    ("registrar_policy_indeterminate_rows", "Rows that nothing tells the age of."),
    ("registrar_policy_blocked_rows", "Rows that are old enough and that others reference."),
    ("registrar_policy_oldest_eligible_age_seconds", "Age of the oldest row that would go."),
    ("registrar_policy_over_ceiling", "1 where a run would ask for approval, or be refused."),
    ("registrar_policy_looked_at_timestamp_seconds", "When the rows were last looked at."),
    ("registrar_policy_last_success_timestamp_seconds", "When a run last completed."),
    ("registrar_policy_last_run_rows", "Rows of that run; 0 is a run that found nothing."),
    ("registrar_policy_last_run_rows_per_second", "Rows a second of that run."),
];
/// Its own line, because 0 and 1 are all that it says.
const WAITING: &str = "registrar_policy_waiting";

impl Services {
    /// Looks at what each enabled policy has before it, one after another, each for a minute at
    /// most. Returns how many could be looked at.
    ///
    /// # Errors
    /// The jobs folder or the database cannot be used. A policy that cannot be previewed is logged.
    pub async fn look_at_backlogs(&self) -> Result<usize, ServiceError> {
        let policies = self.policies().await?;
        let looked_at = |policy: &&Policy| {
            let needs_keys = matches!(policy.kind, Kind::Anonymize(_) | Kind::AnonymizeRows(_));
            policy.enabled && policy.kind.is_destructive() && (!needs_keys || self.can_erase())
        };
        let all: Vec<_> = policies.policies.values().filter(looked_at).collect();
        let names: Vec<_> = all.iter().map(|policy| policy.name.to_string()).collect();
        policy_backlogs::keep_only(&self.db, &names).await?;
        let mut seen = 0;
        for policy in all {
            match self.preview_within(&policies, policy, None, LOOK_TIMEOUT).await {
                Ok(preview) => {
                    self.note_backlog(&preview).await?;
                    seen += 1;
                }
                Err(error) => tracing::warn!(
                    policy = policy.name.as_str(),
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "what the policy has before it cannot be told"
                ),
            }
        }
        Ok(seen)
    }

    /// Keeps what a preview has found, for metrics.
    pub(super) async fn note_backlog(&self, preview: &Preview) -> Result<(), sqlx::Error> {
        let sum = |count: fn(&crate::retention::plan::TablePreview) -> i64| {
            preview.tables.iter().map(count).sum::<i64>()
        };
        let new = NewBacklog {
            policy: &preview.policy,
            eligible: sum(|t| t.eligible) + sum(|t| t.to_erase.unwrap_or_default()),
            held: sum(|t| t.held),
            indeterminate: sum(|t| t.indeterminate),
            blocked: sum(|t| t.blocked),
            oldest_at: preview.tables.iter().filter_map(|table| table.oldest).min(),
            is_over_ceiling: !preview.over_ceiling.is_empty(),
        };
        policy_backlogs::store(&self.db, &new).await
    }

    /// Sets the gauges of policies from what was last found: a few look-ups, no table is read.
    ///
    /// # Errors
    /// The database's.
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    pub async fn tell_policies(&self) -> Result<(), sqlx::Error> {
        for state in policy_backlogs::states(&self.db, MAX_TOLD).await? {
            let values = [
                Some(state.eligible as f64),
                Some(state.held as f64),
                Some(state.indeterminate as f64),
                Some(state.blocked as f64),
                // Where nothing is left there is no age; 0 keeps an alert quiet.
                Some(state.oldest_age.unwrap_or_default()),
                Some(f64::from(u8::from(state.is_over_ceiling))),
                Some(state.taken_at),
                // A gauge that is not there says that there was none; 0 would be a time.
                state.last_success,
                state.last_rows.map(|rows| rows as f64),
                state.last_rate,
            ];
            for ((name, _), value) in GAUGES.into_iter().zip(values) {
                if let Some(value) = value {
                    metrics::gauge!(name, "policy" => state.policy.clone()).set(value);
                }
            }
            metrics::gauge!(WAITING, "policy" => state.policy.clone())
                .set(f64::from(u8::from(state.is_waiting)));
        }
        Ok(())
    }
}

/// Tells what the gauges of policies say.
pub fn describe_metrics() {
    for (name, about) in GAUGES {
        metrics::describe_gauge!(name, about);
    }
    metrics::describe_gauge!(WAITING, "1 while a run waits for load to pass or for approval.");
}
