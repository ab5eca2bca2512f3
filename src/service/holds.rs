//! Placing, releasing and looking at holds.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::{Caller, Permission, ServiceError, Services};
use crate::db::audit::{self, Event};
use crate::db::holds::{self, HoldFilter, HoldRow};
use crate::retention::condition::ConditionFault;
use crate::retention::hold::{PlaceError, Placement, Scope, place};

/// Most characters of a reason; the table says the same.
const MAX_REASON_CHARS: usize = 2_000;
/// Longest wait for chunks at work, and for the checks of a hold.
const PLACE_TIMEOUT: &str = "30s";

/// Why a hold is placed or released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Reason {
    type Err = BadReason;

    fn from_str(text: &str) -> Result<Self, BadReason> {
        let text = text.trim();
        let is_long = text.chars().count() > MAX_REASON_CHARS;
        let is_odd = text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t'));
        if text.is_empty() || is_long || is_odd {
            Err(BadReason)
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// The text is no [`Reason`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must say why, in 1 to {MAX_REASON_CHARS} characters")]
pub struct BadReason;

impl Services {
    /// Places a hold. When this has returned, no chunk of any run works without it.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]; [`ServiceError::BadField`] for a hold that would keep nothing
    /// or that statements could not carry.
    pub async fn place_hold(
        &self,
        caller: &Caller,
        placement: Placement,
        reason: &Reason,
        until: Option<DateTime<Utc>>,
    ) -> Result<HoldRow, ServiceError> {
        caller.require(Permission::HoldsManage)?;
        let mut tx = self.db.begin().await?;
        bound_waiting(&mut tx).await?;
        let (id, scope) = place(&mut tx, placement, reason.as_str(), until, caller.user_id)
            .await
            .map_err(refusal)?;
        // Neither keys nor condition nor reason: they can tell of a person.
        let event = Event {
            action: "hold.placed",
            entity_type: "holds",
            entity_id: Some(id),
            details: json!({
                "scope": scope.name(),
                "table": scope.table(),
                "rows": row_count(&scope),
                "until": until,
            }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        let row = holds::find(&mut tx, id).await?.ok_or(NOT_FOUND)?;
        // Before the act: whatever backup is restored later, this hold comes back. If the commit
        // fails, a hold too many comes back, which a person can release.
        self.copy_hold(&row).await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Releases a hold: what it kept can go with the next run.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`], [`ServiceError::HoldEnded`]
    pub async fn release_hold(
        &self,
        caller: &Caller,
        id: i64,
        reason: &Reason,
    ) -> Result<HoldRow, ServiceError> {
        caller.require(Permission::HoldsManage)?;
        let mut tx = self.db.begin().await?;
        bound_waiting(&mut tx).await?;
        holds::lock_exclusive(&mut tx).await?;
        let is_released = holds::release(&mut tx, id, caller.user_id, reason.as_str()).await?;
        let row = holds::find(&mut tx, id).await?.ok_or(NOT_FOUND)?;
        if !is_released {
            return Err(ServiceError::HoldEnded);
        }
        let event = Event {
            action: "hold.released",
            entity_type: "holds",
            entity_id: Some(id),
            details: json!({ "scope": row.scope, "table": row.table_name }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        tx.commit().await?;
        // After the act: a hold that the store calls released must be. Housekeeping tries again.
        if let Err(error) = self.copy_hold(&row).await {
            tracing::warn!(hold.id = id, %error, "the copy of a released hold is not written yet");
        }
        Ok(row)
    }

    /// Holds, newest first.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_holds(
        &self,
        caller: &Caller,
        filter: HoldFilter<'_>,
        limit: i64,
    ) -> Result<Vec<HoldRow>, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let mut connection = self.db.acquire().await?;
        Ok(holds::list(&mut connection, filter, limit).await?)
    }

    /// One hold.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], [`ServiceError::NotFound`]
    pub async fn find_hold(&self, caller: &Caller, id: i64) -> Result<HoldRow, ServiceError> {
        caller.require(Permission::RetentionView)?;
        let mut connection = self.db.acquire().await?;
        holds::find(&mut connection, id).await?.ok_or(NOT_FOUND)
    }
}

const NOT_FOUND: ServiceError = ServiceError::NotFound { what: "hold" };

/// Chunks are short, so whoever waits longer is told to come back.
async fn bound_waiting(connection: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "select set_config('lock_timeout', $1, true), set_config('statement_timeout', $1, true)",
    )
    .bind(PLACE_TIMEOUT)
    .execute(connection)
    .await?;
    Ok(())
}

fn row_count(scope: &Scope) -> Option<usize> {
    match scope {
        Scope::Rows { table: _, keys } => Some(keys.values.len()),
        Scope::Subject { .. } | Scope::Table { .. } | Scope::Query { .. } => None,
    }
}

fn refusal(error: PlaceError) -> ServiceError {
    let expected = error.to_string();
    let field = match error {
        PlaceError::Database(error) | PlaceError::BadCondition(ConditionFault::Database(error)) => {
            return error.into();
        }
        PlaceError::NoTable | PlaceError::TooMany => "/table",
        PlaceError::NoKey(_)
        | PlaceError::BadShape { .. }
        | PlaceError::BadValue { .. }
        | PlaceError::Missing { .. } => "/keys",
        PlaceError::BadCondition(ConditionFault::Volatile(_) | ConditionFault::Refused(_)) => {
            "/where"
        }
        PlaceError::Past => "/until",
    };
    ServiceError::BadField { field, expected }
}
