//! Submit, follow and cancel executions.

use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;

use super::sharing::{end_followers, reuse_key};
use super::{Caller, MAX_PAGE, Permission, ServiceError, Services};
use crate::db::definitions::{self, StoredDefinition};
use crate::db::executions::{
    self, BackendSignal, CancelRequest, Execution, Filter, NewExecution, Shareable, Status,
};
use crate::db::{audit, idempotency, sqlstate};
use crate::queue;
use crate::report::definition::{Definition, OverEstimate, Slug};
use crate::report::error::ReportError;
use crate::report::parameters::BoundParameters;
use crate::report::{self, Excess, Limits, Presentation};
use crate::writer::Format;

/// How long a submit waits for another one with the same key before it is told to come back.
const SUBMIT_LOCK_TIMEOUT: &str = "2s";
/// Submits of one user that may be in work at once and do not see each other. Only where so many
/// could reach the user's limit do they go one after the other.
const UNSEEN_SUBMITS: i64 = 50;
/// How long a submit waits for others of its user. Shorter than the time of a request.
const QUEUE_UP_SECS: u32 = 15;
/// How long the planner may take at a submit.
const ESTIMATE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a caller submits.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Values for the report's parameters.
    pub parameters: Map<String, Value>,
    /// Format of the file.
    pub format: Format,
    /// For whom, and how CSV looks.
    pub presentation: Presentation,
    /// Makes a repeated submit the same submit.
    pub idempotency_key: Option<IdempotencyKey>,
    /// Whether the result of an identical run will do, and how old it may be.
    pub reuse: Option<Reuse>,
    /// What relative dates are told from; now, where it is not given.
    pub as_of: Option<DateTime<Utc>>,
}

/// How old the snapshot of a shared result may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reuse {
    /// In seconds before the submit. 0 shares only what has not begun.
    pub max_age_secs: u32,
}

/// A key that a client chose for a request: 1 to 255 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl std::str::FromStr for IdempotencyKey {
    type Err = ServiceError;

    fn from_str(text: &str) -> Result<Self, ServiceError> {
        let legal = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if legal {
            return Ok(Self(text.to_owned()));
        }
        Err(ServiceError::BadField {
            field: "Idempotency-Key",
            expected: "must be 1 to 255 visible ASCII characters".to_owned(),
        })
    }
}

/// An execution to be stored.
pub(super) struct Order<'a> {
    /// What to run.
    pub(super) definition: &'a Definition,
    /// The definition's row.
    pub(super) definition_id: i32,
    /// Its version.
    pub(super) version: i32,
    /// Resolved parameters.
    pub(super) parameters: Value,
    /// Into which format.
    pub(super) format: Format,
    /// For whom, and how it looks.
    pub(super) presentation: Presentation,
    /// The execution that it makes a further format of.
    pub(super) format_of: Option<i64>,
}

/// The answer to a submit.
#[derive(Debug)]
pub struct Submitted {
    /// The execution, new or from the first submit with this key.
    pub execution: Execution,
    /// Whether the key was seen before.
    pub replayed: bool,
}

/// An execution with what waiting for it will be like.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The execution.
    pub execution: Execution,
    /// Executions before it, while it is pending.
    pub queue_position: Option<i64>,
    /// Seconds that past runs took, at the median.
    pub typical_secs: Option<f64>,
}

impl Followed {
    /// An execution of which nobody asked how long it will take.
    pub fn without_outlook(execution: Execution) -> Self {
        Self { execution, queue_position: None, typical_secs: None }
    }
}

/// What the planner expects of a submission, against the limits.
#[derive(Debug)]
pub struct SubmissionEstimate {
    /// Rows of the result.
    pub rows: f64,
    /// Cost in the planner's units.
    pub cost: f64,
    /// Most rows that the report may have.
    pub max_rows: u64,
    /// What the estimate is over.
    pub excess: Option<Excess>,
    /// Whether a submit would be refused for that.
    pub refused: bool,
}

impl Services {
    /// Stores an execution and its ticket: key, row, ticket and audit in one transaction.
    ///
    /// # Errors
    /// [`ServiceError`]: forbidden, not found, bad parameters, too many, key trouble.
    pub async fn submit(
        &self,
        caller: &Caller,
        slug: &str,
        submission: &Submission,
    ) -> Result<Submitted, ServiceError> {
        caller.require(Permission::ReportsRun)?;
        check_file_type(submission.format, submission.presentation)?;
        let mut tx = self.db.begin().await?;
        sqlx::query("select set_config('lock_timeout', $1, true)")
            .bind(SUBMIT_LOCK_TIMEOUT)
            .execute(&mut *tx)
            .await?;
        if let Some(first) = self.take_key(&mut tx, caller, slug, submission).await? {
            return Ok(Submitted { execution: first, replayed: true });
        }
        let (stored, definition) = self.runnable(&mut tx, caller, slug).await?;
        let bound = bind(&mut tx, &definition, &submission.parameters, submission.as_of).await?;
        self.require_choices(&definition, &bound).await?;
        self.require_estimate(&definition, &bound, submission).await?;
        let order = Order {
            definition: &definition,
            definition_id: stored.id,
            version: stored.version,
            parameters: bound.canonical_json(),
            format: submission.format,
            presentation: submission.presentation,
            format_of: None,
        };
        let id = self.store(&mut tx, caller, &order, submission.reuse).await?;
        if let (Some(key), Some(user_id)) = (&submission.idempotency_key, caller.user_id) {
            idempotency::settle(&mut tx, user_id, &key.0, id).await?;
        }
        let execution = find(&mut tx, id).await?;
        tx.commit().await?;
        metrics::counter!("registrar_executions_submitted_total").increment(1);
        Ok(Submitted { execution, replayed: false })
    }

    /// Stores an execution with its ticket and audit row, or one that shares another's run.
    pub(super) async fn store(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
        order: &Order<'_>,
        reuse: Option<Reuse>,
    ) -> Result<i64, ServiceError> {
        let (format, options) = (order.format.extension(), json!(order.presentation));
        let version = (order.definition_id, order.version);
        let parameters = &order.parameters;
        let key = reuse_key(version, order.definition, parameters, format, &options);
        let mut new = NewExecution {
            definition_id: order.definition_id,
            definition_version: order.version,
            executed_by: caller.user_id,
            parameters,
            format,
            options: &options,
            max_attempts: i32::try_from(self.config.report.max_attempts.get()).unwrap_or(i32::MAX),
            max_concurrent: order.definition.limits().max_concurrent_per_user,
            format_of: order.format_of,
            reuse_key: Some(&key),
            shared_from: None,
            trace_id: &caller.trace_id,
        };
        let found = match reuse {
            Some(Reuse { max_age_secs }) => {
                executions::find_shareable(connection, &key, f64::from(max_age_secs)).await?
            }
            None => None,
        };
        let shared = match found {
            Some(Shareable::Completed(id)) => {
                executions::insert_shared(connection, &new, id).await?.map(|stored| (stored, id))
            }
            Some(Shareable::InFlight(_)) | None => None,
        };
        let (id, shared_from) = match (shared, found) {
            (Some((id, from)), _) => (id, Some(from)),
            (None, Some(Shareable::InFlight(leader))) => {
                self.require_room(connection, caller).await?;
                new.shared_from = Some(leader);
                (executions::insert(connection, &new).await?, Some(leader))
            }
            (None, Some(Shareable::Completed(_)) | None) => {
                self.require_room(connection, caller).await?;
                let id = executions::insert(connection, &new).await?;
                queue::enqueue_execution(connection, id, 0).await?;
                (id, None)
            }
        };
        if shared_from.is_some() {
            metrics::counter!("registrar_executions_shared_total").increment(1);
        }
        let event = audit::Event {
            action: "execution.submitted",
            entity_type: "report_executions",
            entity_id: Some(id),
            details: json!({
                "report": order.definition.slug().as_str(), "version": order.version,
                "format": order.format, "format_of": order.format_of,
                "shared_from": shared_from, "trace_id": caller.trace_id,
            }),
        };
        audit::record(connection, &caller.actor, event).await?;
        Ok(id)
    }

    /// What a submission would take, without running it. Checks all that a submit checks.
    ///
    /// # Errors
    /// As [`Services::submit`], and [`ServiceError::ReportFails`] where the server refuses the
    /// query. Values that the query cannot compute with are a bad field.
    pub async fn estimate(
        &self,
        caller: &Caller,
        slug: &str,
        submission: &Submission,
    ) -> Result<SubmissionEstimate, ServiceError> {
        caller.require(Permission::ReportsRun)?;
        check_file_type(submission.format, submission.presentation)?;
        let mut connection = self.db.acquire().await?;
        let (_, definition) = self.runnable(&mut connection, caller, slug).await?;
        let bound = bind(&mut connection, &definition, &submission.parameters, None).await?;
        drop(connection);
        self.require_choices(&definition, &bound).await?;
        self.expected(&definition, &bound, submission).await
    }

    async fn expected(
        &self,
        definition: &Definition,
        bound: &BoundParameters,
        submission: &Submission,
    ) -> Result<SubmissionEstimate, ServiceError> {
        let mut limits = Limits::of(definition, &self.config.report);
        limits.timeout = limits.timeout.min(ESTIMATE_TIMEOUT);
        let order = report::Order {
            definition,
            parameters: bound,
            format: submission.format,
            presentation: submission.presentation,
            limits,
            name: format!("registrar estimate {}", definition.slug()),
        };
        let estimate = report::estimate(&self.reports, &order).await.map_err(report_failed)?;
        let excess = Excess::of(&estimate, &order);
        Ok(SubmissionEstimate {
            rows: estimate.rows,
            cost: estimate.cost,
            max_rows: order.limits.ceiling.max_rows,
            excess,
            refused: excess.is_some() && definition.limits().over_estimate == OverEstimate::Refuse,
        })
    }

    /// Refuses what the planner expects to be too much, where the definition asks for that. Only
    /// then is the planner asked.
    async fn require_estimate(
        &self,
        definition: &Definition,
        bound: &BoundParameters,
        submission: &Submission,
    ) -> Result<(), ServiceError> {
        match definition.limits().over_estimate {
            OverEstimate::Run => return Ok(()),
            OverEstimate::Refuse => {}
        }
        let expected = self.expected(definition, bound, submission).await?;
        match expected.excess {
            None => Ok(()),
            Some(excess) => Err(ServiceError::OverEstimate {
                code: excess.code(),
                rows: expected.rows,
                limit: excess.limit(),
            }),
        }
    }

    /// Finds an execution that the caller may see, and its outlook.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], also for one that the caller may not know of.
    pub async fn follow(&self, caller: &Caller, id: i64) -> Result<Followed, ServiceError> {
        caller.require_following()?;
        let mut connection = self.db.acquire().await?;
        let execution = self.visible(&mut connection, caller, id).await?;
        drop(connection);
        if execution.status.is_final() {
            return Ok(Followed::without_outlook(execution));
        }
        let (position, typical_secs) = executions::outlook(&self.db, id).await?;
        let queue_position = (execution.status == Status::Pending).then_some(position);
        Ok(Followed { execution, queue_position, typical_secs })
    }

    /// For how long an execution has been running, by the database's clock; `None` if it does not.
    ///
    /// # Errors
    /// The database's.
    pub async fn running_secs(&self, execution: &Execution) -> Result<Option<f64>, ServiceError> {
        let (Status::Processing | Status::Cancelling, Some(since)) =
            (execution.status, execution.started_at)
        else {
            return Ok(None);
        };
        let secs = sqlx::query_scalar("select extract(epoch from now() - $1)::float8")
            .bind(since)
            .fetch_one(&self.db)
            .await?;
        Ok(Some(secs))
    }

    /// Lists executions that the caller may see, newest first. `mine` is implied without the
    /// permission to see all. One more than [`MAX_PAGE`] may be asked for, so that a page knows
    /// whether another follows.
    ///
    /// # Errors
    /// [`ServiceError::Forbidden`]
    pub async fn list_executions(
        &self,
        caller: &Caller,
        mut filter: Filter,
        limit: i64,
    ) -> Result<Vec<Execution>, ServiceError> {
        caller.require_following()?;
        if !caller.may(Permission::ExecutionsViewAll.codename()) {
            // Nobody's executions, rather than everybody's, for a caller without an account.
            filter.executed_by = Some(caller.user_id.unwrap_or(0));
        }
        Ok(executions::list(&self.db, &filter, limit.clamp(1, MAX_PAGE + 1)).await?)
    }

    /// Cancels an execution: at once if it waits, otherwise its query is ended on the server and
    /// the state follows when the server's process is gone.
    ///
    /// # Errors
    /// [`ServiceError::WrongState`] when it has ended or is being cancelled already.
    pub async fn cancel(&self, caller: &Caller, id: i64) -> Result<Execution, ServiceError> {
        caller.require_following()?;
        let mut tx = self.db.begin().await?;
        let execution = self.visible(&mut tx, caller, id).await?;
        if execution.executed_by.is_none() || execution.executed_by != caller.user_id {
            caller.require(Permission::ExecutionsCancelAll)?;
        }
        let requested = executions::request_cancel(&mut tx, id).await?;
        if requested == CancelRequest::Refused {
            // Read again: it may have ended between the two statements.
            let status = find(&mut tx, id).await?.status;
            return Err(ServiceError::WrongState { status });
        }
        let event = audit::Event {
            action: "execution.cancel_requested",
            entity_type: "report_executions",
            entity_id: Some(id),
            details: json!({ "trace_id": caller.trace_id }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        let execution = find(&mut tx, id).await?;
        // Others may wait for its result: one of them takes its place.
        end_followers(&mut tx, id, execution.status).await?;
        tx.commit().await?;
        if let CancelRequest::Cancelling(backend) = requested
            && let Err(error) = self.signal_backend(backend, BackendSignal::Cancel).await
        {
            // The worker looks every second and does the same.
            tracing::warn!(execution.id = id, %error, "cannot end a query from here");
        }
        Ok(execution)
    }

    /// Runs a failed or cancelled execution again, with the same parameters and version.
    ///
    /// # Errors
    /// [`ServiceError::WrongState`] in any other state.
    pub async fn retry(&self, caller: &Caller, id: i64) -> Result<Execution, ServiceError> {
        caller.require_following()?;
        let mut tx = self.db.begin().await?;
        let execution = self.visible(&mut tx, caller, id).await?;
        if execution.executed_by.is_none() || execution.executed_by != caller.user_id {
            caller.require(Permission::ExecutionsCancelAll)?;
        }
        if !executions::retry_by_hand(&mut tx, id).await? {
            return Err(ServiceError::WrongState { status: execution.status });
        }
        queue::enqueue_execution(&mut tx, id, 0).await?;
        let event = audit::Event {
            action: "execution.retried",
            entity_type: "report_executions",
            entity_id: Some(id),
            details: json!({ "was": execution.status, "trace_id": caller.trace_id }),
        };
        audit::record(&mut tx, &caller.actor, event).await?;
        let execution = find(&mut tx, id).await?;
        tx.commit().await?;
        Ok(execution)
    }

    /// Checks parameters and resolves what is relative, with the database's clock.
    ///
    /// # Errors
    /// [`ServiceError::BadParameters`]
    pub async fn bind(
        &self,
        definition: &Definition,
        given: &Map<String, Value>,
    ) -> Result<BoundParameters, ServiceError> {
        let mut connection = self.db.acquire().await?;
        let bound = bind(&mut connection, definition, given, None).await?;
        drop(connection);
        self.require_choices(definition, &bound).await?;
        Ok(bound)
    }

    /// The execution, if the caller may know of it.
    pub(super) async fn visible(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
        id: i64,
    ) -> Result<Execution, ServiceError> {
        let execution = find(connection, id).await?;
        let own = execution.executed_by.is_some() && execution.executed_by == caller.user_id;
        if own || caller.may(Permission::ExecutionsViewAll.codename()) {
            return Ok(execution);
        }
        Err(ServiceError::NotFound { what: "execution" })
    }

    /// The report under a slug, if the caller may run it.
    pub(super) async fn runnable(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
        slug: &str,
    ) -> Result<(StoredDefinition, Definition), ServiceError> {
        let stored = definitions::find_active(connection, slug)
            .await?
            .ok_or(ServiceError::NotFound { what: "report" })?;
        let definition = typed(&stored)?;
        if let Some(permission) = definition.permission() {
            caller.require_codename(permission)?;
        }
        Ok((stored, definition))
    }

    /// Takes the submission's key. Answers with the first execution if it was used before.
    async fn take_key(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
        slug: &str,
        submission: &Submission,
    ) -> Result<Option<Execution>, ServiceError> {
        let (Some(key), Some(user_id)) = (&submission.idempotency_key, caller.user_id) else {
            return Ok(None);
        };
        let request = request_hash(slug, submission);
        let hours = self.config.idempotency.retention_hours.get();
        let taken = idempotency::take(connection, user_id, &key.0, &request, hours).await;
        let used = match taken {
            Err(error) if sqlstate(&error).as_deref() == Some("55P03") => {
                return Err(ServiceError::IdempotencyInFlight);
            }
            taken => taken?,
        };
        let Some(used) = used else { return Ok(None) };
        if used.request_sha256 != request {
            return Err(ServiceError::IdempotencyMismatch);
        }
        match used.execution_id {
            Some(id) => Ok(Some(find(connection, id).await?)),
            None => Err(ServiceError::IdempotencyInFlight),
        }
    }

    async fn require_room(
        &self,
        connection: &mut PgConnection,
        caller: &Caller,
    ) -> Result<(), ServiceError> {
        let Some(user_id) = caller.user_id else { return Ok(()) };
        let limit = self.config.report.max_active_per_user.get();
        if executions::count_active(connection, user_id).await? + UNSEEN_SUBMITS < i64::from(limit)
        {
            return Ok(());
        }
        executions::queue_up_submits(connection, user_id, QUEUE_UP_SECS).await?;
        if executions::count_active(connection, user_id).await? >= i64::from(limit) {
            return Err(ServiceError::TooManyActive { limit });
        }
        Ok(())
    }
}

/// Refuses a compression of a format that has none.
pub(super) fn check_file_type(
    format: Format,
    presentation: Presentation,
) -> Result<(), ServiceError> {
    match presentation.file_type(format) {
        Ok(_) => Ok(()),
        Err(refused) => Err(ServiceError::BadField {
            field: "/compression",
            expected: format!("must be left out: {refused}"),
        }),
    }
}

/// The typed definition of a stored one.
pub(crate) fn typed(stored: &StoredDefinition) -> Result<Definition, ServiceError> {
    let slug: Slug = stored
        .slug
        .parse()
        .map_err(|error| ServiceError::Internal(anyhow::anyhow!("stored slug: {error}")))?;
    Definition::from_json(slug, &stored.spec, &stored.query)
        .map_err(|error| ServiceError::Internal(anyhow::anyhow!("stored definition: {error}")))
}

/// Whose fault it is that the report's database gave no answer at a submit.
pub(super) fn report_failed(error: ReportError) -> ServiceError {
    match error {
        ReportError::Unavailable(source) => ServiceError::DatabaseUnavailable(source),
        // The planner computes with the values that it is given: a division by a parameter that is
        // zero fails here, as it would in the run.
        ReportError::Sql { ref sqlstate, .. } if sqlstate.starts_with("22") => {
            ServiceError::BadField { field: "/parameters", expected: error.public_message() }
        }
        // A table was locked for too long, or the server busy.
        error if error.is_transient() || matches!(error, ReportError::Timeout { .. }) => {
            ServiceError::DatabaseUnavailable(sqlx::Error::Io(std::io::Error::other(error)))
        }
        error => ServiceError::ReportFails { code: error.code(), message: error.public_message() },
    }
}

/// Resolves parameters with the database's clock: many machines, one "today".
async fn bind(
    connection: &mut PgConnection,
    definition: &Definition,
    given: &Map<String, Value>,
    as_of: Option<DateTime<Utc>>,
) -> Result<BoundParameters, ServiceError> {
    let (now, today): (DateTime<Utc>, NaiveDate) =
        sqlx::query_as("select coalesce($2, now()), (coalesce($2, now()) at time zone $1)::date")
            .bind(definition.time_zone().name())
            .bind(as_of)
            .fetch_one(connection)
            .await?;
    definition.bind(given, today, now).map_err(ServiceError::BadParameters)
}

pub(super) async fn find(
    connection: &mut PgConnection,
    id: i64,
) -> Result<Execution, ServiceError> {
    executions::find(connection, id).await?.ok_or(ServiceError::NotFound { what: "execution" })
}

/// Tells one request from another: parameters in any order are the same request.
fn request_hash(slug: &str, submission: &Submission) -> Vec<u8> {
    let mut parameters = Value::Object(submission.parameters.clone());
    parameters.sort_all_objects();
    let mut request = json!([slug, parameters, submission.format, submission.presentation]);
    if let (Some(reuse), Value::Array(parts)) = (submission.reuse, &mut request) {
        parts.push(json!(reuse));
    }
    Sha256::digest(request.to_string()).to_vec()
}
