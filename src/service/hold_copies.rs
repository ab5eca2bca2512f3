//! Copies of holds in the store: a hold that is younger than a backup survives its restore.
//!
//! A copy is written before the hold is in force, and another after it was released. It says all
//! that the row says, for the recipients of backups where the settings name some. Copies are never
//! changed or deleted, as the rows are not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::json;

use super::backups::identities;
use super::{Caller, Permission, ServiceError, Services};
use crate::backup::seal::{Encryption, open_small, seal_small};
use crate::db::audit::{self, Event};
use crate::db::holds::{self, HoldFilter, HoldRow, Replay};
use crate::store::{HOLD_FOLDER, HoldKey, ObjectKey};

/// Longest wait for the store while a hold is being placed: chunks wait for its end.
const STORE_TIMEOUT: Duration = Duration::from_secs(20);
/// Rows read at once.
const PAGE: i64 = 500;
/// What a copy is called that is encrypted, and one that is not.
const SEALED: &str = "json.age";
const OPEN: &str = "json";

/// What a replay found.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct HoldsReplayed {
    /// Holds in the store.
    pub found: u64,
    /// Those that the database did not have.
    pub placed: u64,
    /// Those that it did not know to be released.
    pub released: u64,
    /// Copies that cannot be opened or read.
    pub broken: Vec<String>,
}

impl Services {
    /// Writes the copy of a hold as it is now.
    pub(super) async fn copy_hold(&self, row: &HoldRow) -> Result<(), ServiceError> {
        let encryption = Encryption::where_named(&self.config.backup)?;
        let extension = match encryption {
            Encryption::Age(_) => SEALED,
            Encryption::Plain => OPEN,
        };
        let text = serde_json::to_vec_pretty(row).expect("plain data is JSON");
        let path = ObjectKey::Hold(key(row, extension)).path();
        let put = self.store.put(&path, seal_small(&text, &encryption)?.into());
        match tokio::time::timeout(STORE_TIMEOUT, put).await {
            Ok(put) => Ok(put?),
            Err(_) => Err(ServiceError::Internal(anyhow::anyhow!(
                "the store did not take the copy of a hold in {} s",
                STORE_TIMEOUT.as_secs()
            ))),
        }
    }

    /// Writes the copies that are missing. Returns how many there were.
    ///
    /// # Errors
    /// The database's and the store's.
    pub async fn copy_holds(&self) -> Result<u64, ServiceError> {
        let stored = self.store.list(HOLD_FOLDER).await?;
        let known: BTreeSet<_> = stored.iter().map(|o| stem(o.location.as_ref())).collect();
        let mut connection = self.db.acquire().await?;
        let (mut copied, mut before) = (0, None);
        loop {
            let filter = HoldFilter { before, ..HoldFilter::default() };
            let rows = holds::list(&mut connection, filter, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(copied) };
            before = Some(last.id);
            for row in &rows {
                if !known.contains(stem(ObjectKey::Hold(key(row, OPEN)).path().as_ref())) {
                    self.copy_hold(row).await?;
                    copied += 1;
                }
            }
        }
    }

    /// Brings back the holds of the store, and releases those that were. Twice changes nothing.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`], the database's and the store's.
    pub async fn replay_holds(&self, caller: &Caller) -> Result<HoldsReplayed, ServiceError> {
        caller.require(Permission::HoldsManage)?;
        let identities = identities(&self.config.backup, None)?;
        let mut replayed = HoldsReplayed::default();
        // By hold. `placed` comes before `released`, which is the later word.
        let mut latest: BTreeMap<String, HoldRow> = BTreeMap::new();
        let mut paths: Vec<_> =
            self.store.list(HOLD_FOLDER).await?.into_iter().map(|o| o.location).collect();
        paths.sort();
        for path in paths {
            let bytes = self.store.get(&path).await?;
            let opened = match path.as_ref().ends_with(SEALED) {
                true => open_small(&bytes, &identities).ok(),
                false => Some(bytes.to_vec()),
            };
            let row = opened.and_then(|text| serde_json::from_slice::<HoldRow>(&text).ok());
            match row {
                Some(row) => {
                    latest.insert(format!("{}-{}", row.placed_at, row.id), row);
                }
                None => replayed.broken.push(path.to_string()),
            }
        }
        let mut tx = self.db.begin().await?;
        for row in latest.values() {
            replayed.found += 1;
            match holds::replay(&mut tx, row).await? {
                Replay::Placed => replayed.placed += 1,
                Replay::Released => replayed.released += 1,
                Replay::Known => {}
            }
        }
        let HoldsReplayed { found, placed, released, broken } = &replayed;
        let event = Event {
            action: "hold.replayed",
            entity_type: "holds",
            entity_id: None,
            details: json!({
                "found": found, "placed": placed, "released": released, "broken": broken.len(),
            }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        tx.commit().await?;
        Ok(replayed)
    }
}

fn key<'a>(row: &HoldRow, extension: &'a str) -> HoldKey<'a> {
    let step = if row.released_at.is_some() { "released" } else { "placed" };
    HoldKey { placed_at: row.placed_at, id: row.id, step, extension }
}

/// A path without what tells whether the copy is encrypted.
fn stem(path: &str) -> &str {
    path.strip_suffix(".age").unwrap_or(path)
}
