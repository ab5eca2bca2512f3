//! Scheduled reports, brought to their owner: to a webhook, by e-mail, by a copy in the store.
//!
//! Who made the schedule gets what they could fetch themselves: their rights are looked at when
//! it fires, and again when a file is attached or copied. A failure is told like a success.

use std::str::FromStr;

use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::webhooks::EventType;
use super::{Caller, ServiceError, Services, object};
use crate::db::report_deliveries::{self as outbox, ClaimedReport, Ended};
use crate::db::schedules;
use crate::db::{accounts, audit, tokens, webhooks};
use crate::notify::mail::{AttachedFile, Mail};
use crate::service::results::ResultFile;
use crate::store::key::{COPIES, copied_execution, copy_folder};
use crate::store::{ObjectKey, ObjectPath, StoreError};

/// Occurrences that are looked at in one pass; the next pass comes soon.
const BATCH: i64 = 100;
/// Copies that the sweep looks at in one go.
const SWEPT_AT_ONCE: usize = 500;

/// How the results of a schedule are brought to its owner; any of the three.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Deliver {
    /// Name of a webhook that is told, whatever types of events it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<String>,
    /// A mail to the owner.
    #[serde(
        default,
        deserialize_with = "object::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub email: Option<DeliverEmail>,
    /// A copy of the file in this folder below `deliveries/` of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub copy_to: Option<CopyFolder>,
}

/// A mail to the owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeliverEmail {
    /// Whether the file comes with it, if it is not larger than the installation allows.
    #[serde(default)]
    pub attach: bool,
}

/// A folder: words of small letters, digits and hyphens, joined by slashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CopyFolder(String);

/// The text is not such a folder.
#[derive(Debug, Clone, thiserror::Error)]
#[error("must be a folder like `monthly/ranking`: small letters, digits, hyphens, slashes")]
pub struct BadCopyFolder;

impl FromStr for CopyFolder {
    type Err = BadCopyFolder;

    fn from_str(text: &str) -> Result<Self, BadCopyFolder> {
        let word = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let good = text.len() <= 200 && text.split('/').all(word);
        good.then(|| Self(text.to_owned())).ok_or(BadCopyFolder)
    }
}

impl TryFrom<String> for CopyFolder {
    type Error = BadCopyFolder;

    fn try_from(text: String) -> Result<Self, BadCopyFolder> {
        text.parse()
    }
}

impl From<CopyFolder> for String {
    fn from(folder: CopyFolder) -> Self {
        folder.0
    }
}

impl Services {
    /// Checks that a schedule can be delivered as it asks for.
    ///
    /// # Errors
    /// [`ServiceError::BadField`]
    pub async fn check_deliver(
        &self,
        connection: &mut PgConnection,
        deliver: &Deliver,
    ) -> Result<(), ServiceError> {
        let refuse = |field, expected: &str| {
            Err(ServiceError::BadField { field, expected: expected.to_owned() })
        };
        if let Some(name) = &deliver.webhook
            // With NUL PostgreSQL would not even look for it.
            && (name.contains('\0') || webhooks::find(connection, name).await?.is_none())
        {
            return refuse("/deliver/webhook", "must be the name of a webhook");
        }
        if deliver.email.is_some() && self.config.email.url.is_none() {
            return refuse("/deliver/email", "must not be asked for: `email.url` is not set here");
        }
        Ok(())
    }

    /// Stores an event, and its deliveries, for each occurrence whose execution has ended or that
    /// could not start one. Returns how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn start_report_deliveries(&self) -> Result<usize, ServiceError> {
        let mut tx = self.db.begin().await?;
        let ended = outbox::take_ended(&mut tx, BATCH).await?;
        for one in &ended {
            start(&mut tx, one).await?;
        }
        tx.commit().await?;
        Ok(ended.len())
    }

    /// Writes the mail of a delivery; `None`: the owner is gone, or has no right any more.
    ///
    /// # Errors
    /// Database or store do not answer.
    pub async fn write_mail(&self, claimed: &ClaimedReport) -> Result<Option<Mail>, ServiceError> {
        let Some(to) = accounts::find_email(&self.db, claimed.owner_id).await? else {
            return Ok(None);
        };
        let schedule = &claimed.schedule;
        let data = &claimed.data;
        let text_of = |key: &str| data[key].as_str().unwrap_or_default().to_owned();
        let (report, due_at) = (text_of("report"), text_of("due_at"));
        let attached = if claimed.attach { self.attachment(claimed).await? } else { None };
        let (what, mut text) = match claimed.event_type.as_str() {
            "schedule.completed" => (
                "is ready",
                format!(
                    "The report `{report}` of your schedule `{schedule}`, due {due_at}, is ready.\n"
                ),
            ),
            "schedule.delivery_failed" => (
                "could not be delivered",
                format!(
                    "The report `{report}` of your schedule `{schedule}`, due {due_at}, could not \
                     be delivered by {} ({}).\n",
                    text_of("channel"),
                    text_of("error"),
                ),
            ),
            _ => (
                "failed",
                format!(
                    "The report `{report}` of your schedule `{schedule}`, due {due_at}, has no \
                     result: {} ({}).\n",
                    text_of("status"),
                    text_of("error_code"),
                ),
            ),
        };
        if claimed.attach && attached.is_none() && what == "is ready" {
            text.push_str("\nThe file is too large to be attached.\n");
        }
        if let Some(execution) = claimed.execution_id {
            let place = match &self.config.email.link {
                Some(link) => link.replace("{execution}", &execution.to_string()),
                None => format!("execution {execution}"),
            };
            text.push_str(&format!("\n{place}\n"));
        }
        Ok(Some(Mail {
            to,
            subject: format!("{schedule} {what}"),
            text,
            message_id: format!("{}.{}", claimed.event_id.simple(), claimed.id),
            date: claimed.occurred_at,
            attachment: attached,
        }))
    }

    /// Copies the result of a delivery's execution; `false`: the owner may not read it any more.
    ///
    /// # Errors
    /// Database or store do not answer, or the result is gone.
    pub async fn copy_result(
        &self,
        claimed: &ClaimedReport,
        folder: &str,
        execution: i64,
    ) -> Result<bool, ServiceError> {
        let Some(file) = self.owned_result(claimed, execution).await? else { return Ok(false) };
        let name = &file.file_name;
        let path = ObjectKey::Copy { folder, execution, file_name: name }.path();
        self.copy_file(&file, &path).await?;
        // It may have expired meanwhile, and its copies with it. What happens between this look and
        // the next is the sweep's.
        let kept = outbox::completed_among(&self.db, &[execution]).await?;
        if kept.is_empty() {
            self.store.remove_folder(&copy_folder(folder, execution)).await?;
        }
        Ok(!kept.is_empty())
    }

    /// Deletes the copies of an execution's result.
    ///
    /// # Errors
    /// Database or store do not answer.
    pub(super) async fn remove_copies(&self, execution: i64) -> Result<(), ServiceError> {
        for folder in self.copy_folders(execution).await? {
            self.store.remove_folder(&folder).await?;
        }
        Ok(())
    }

    /// Where the copies of a result are.
    pub(super) async fn copy_folders(&self, execution: i64) -> Result<Vec<String>, sqlx::Error> {
        let folders = outbox::copies_of(&self.db, execution).await?;
        Ok(folders.iter().map(|folder| copy_folder(folder, execution)).collect())
    }

    /// Deletes copies whose result is gone: those that a worker was making while the result expired.
    /// Returns how many. What the store does not delete is left to the next sweep.
    ///
    /// # Errors
    /// The database does not answer, or the store does not tell what it has.
    pub async fn sweep_copies(&self) -> Result<u64, ServiceError> {
        let mut deletions = self.deletions();
        let mut deleted = 0;
        let mut chunks = self.store.stream(COPIES).try_chunks(SWEPT_AT_ONCE);
        loop {
            let chunk = chunks.try_next().await.map_err(|error| {
                ServiceError::StoreUnavailable(StoreError::listing(COPIES, error.1))
            })?;
            let Some(chunk) = chunk else { return Ok(deleted) };
            let copies: Vec<_> = chunk
                .iter()
                .filter_map(|object| Some((copied_execution(&object.location)?, &object.location)))
                .collect();
            let executions: Vec<_> = copies.iter().map(|(execution, _)| *execution).collect();
            let kept = outbox::completed_among(&self.db, &executions).await?;
            for (_, path) in copies.iter().filter(|(execution, _)| !kept.contains(execution)) {
                deleted += u64::from(deletions.try_one(self.store.delete(path)).await);
            }
        }
    }

    /// Tells of a delivery that was given up: whoever asked for it, and the owner by mail, where
    /// the mail is not itself what failed.
    ///
    /// # Errors
    /// The database's.
    pub async fn tell_of_failed_delivery(
        &self,
        connection: &mut PgConnection,
        claimed: &ClaimedReport,
        error: &str,
    ) -> Result<(), sqlx::Error> {
        let mut data = claimed.data.clone();
        if let Value::Object(data) = &mut data {
            data.insert("channel".to_owned(), claimed.channel.as_str().into());
            data.insert("error".to_owned(), error.into());
        }
        let by_mail = claimed.channel != outbox::Channel::Email && self.config.email.url.is_some();
        let event_type = EventType::ScheduleDeliveryFailed.as_str();
        let event = outbox::publish(connection, event_type, &data, None, by_mail).await?;
        if let Some(event) = event.filter(|_| by_mail) {
            outbox::add_email(connection, event, &claimed.source(), false).await?;
        }
        let event = audit::Event {
            action: "schedule.delivery_failed",
            entity_type: "schedules",
            entity_id: None,
            details: json!({
                "schedule": claimed.schedule, "channel": claimed.channel.as_str(), "error": error,
                "execution": claimed.execution_id,
            }),
        };
        audit::record(connection, &audit::Actor::system(), event).await
    }

    async fn attachment(
        &self,
        claimed: &ClaimedReport,
    ) -> Result<Option<AttachedFile>, ServiceError> {
        let Some(execution) = claimed.execution_id else { return Ok(None) };
        if claimed.event_type != EventType::ScheduleCompleted.as_str() {
            return Ok(None);
        }
        let Some(file) = self.owned_result(claimed, execution).await? else { return Ok(None) };
        if file.size_bytes > self.config.email.attach_max_bytes {
            return Ok(None);
        }
        let chunks = self.read_result(&file, None).await?.into_stream();
        let bytes = chunks
            .try_fold(Vec::new(), |mut all, chunk| async move {
                all.extend_from_slice(&chunk);
                Ok(all)
            })
            .await
            .map_err(|error| ServiceError::Internal(error.into()))?;
        Ok(Some(AttachedFile {
            media_type: file.file_type.media_type().to_owned(),
            name: file.file_name,
            bytes,
        }))
    }

    /// The result, if the owner of the schedule may fetch it now; that they get it is recorded.
    async fn owned_result(
        &self,
        claimed: &ClaimedReport,
        execution: i64,
    ) -> Result<Option<ResultFile>, ServiceError> {
        let mut connection = self.db.acquire().await?;
        let owner = tokens::find_account(&mut connection, claimed.owner_id).await?;
        drop(connection);
        let Some(owner) = owner else { return Ok(None) };
        let caller = Caller::on_behalf_of(owner, uuid::Uuid::new_v4().simple().to_string());
        match self.result(&caller, execution).await {
            Ok(file) => Ok(Some(file)),
            Err(
                ServiceError::Forbidden { .. }
                | ServiceError::NotFound { .. }
                | ServiceError::Expired,
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn copy_file(&self, file: &ResultFile, to: &ObjectPath) -> Result<(), ServiceError> {
        Ok(self.store.copy(file.path(), to).await?)
    }
}

/// Stores the event of one occurrence, and its deliveries.
async fn start(connection: &mut PgConnection, ended: &Ended) -> Result<(), ServiceError> {
    // Deleted meanwhile: nobody waits for it.
    let Some(schedule) = schedules::find(connection, &ended.schedule).await? else {
        return Ok(());
    };
    let deliver: Deliver = serde_json::from_value(schedule.deliver.clone()).unwrap_or_default();
    let completed = ended.execution_status.as_deref() == Some("completed");
    let event_type =
        if completed { EventType::ScheduleCompleted } else { EventType::ScheduleFailed };
    let status = ended.execution_status.as_deref().unwrap_or("not_started");
    let data = json!({
        "schedule": ended.schedule, "report": schedule.report, "due_at": ended.due_at,
        "execution_id": ended.execution_id, "status": status,
        "error_code": ended.error_code.as_deref().or(ended.reason.as_deref()),
        "row_count": ended.row_count, "size_bytes": ended.size_bytes,
    });
    let wanted = deliver.email.is_some() || deliver.copy_to.is_some();
    let event =
        outbox::publish(connection, event_type.as_str(), &data, deliver.webhook.as_deref(), wanted)
            .await?;
    let Some(event) = event else { return Ok(()) };
    let source = outbox::Source {
        schedule: ended.schedule.clone(),
        owner_id: schedule.owner_id,
        execution_id: ended.execution_id,
    };
    if let Some(email) = deliver.email {
        outbox::add_email(connection, event, &source, email.attach && completed).await?;
    }
    if let (Some(folder), true) = (deliver.copy_to, completed) {
        outbox::add_copy(connection, event, &source, &String::from(folder)).await?;
    }
    Ok(())
}
