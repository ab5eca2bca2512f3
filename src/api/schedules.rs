//! Schedules: reports that run by themselves.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::header::LOCATION;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::error::ProblemKind;
use super::extract::{Authenticated, JsonObject, NameInPath};
use super::problem::{FieldError, Problem};
use super::query::{NoQuery, QueryReader};
use super::submission::{Delimiter, SubmissionBody, field, pointer};
use crate::db::deliveries::DeliveryStatus;
use crate::db::report_deliveries::{Channel, ReportDelivery};
use crate::db::schedules::{
    CatchUp, Occurrence, OccurrenceStatus, Overlap, Schedule, ScheduleName, Timing,
};
use crate::service::object::Object;
use crate::service::report_deliveries::Deliver;
use crate::service::schedules::{
    MAX_UPCOMING, ScheduleHistory, ScheduleOrder, ScheduledSubmission,
};
use crate::writer::{Compression, Format, Reader};

/// Coming times where the client does not say how many.
const DEFAULT_UPCOMING: usize = 5;
/// How late an occurrence may still fire where the client does not say.
const DEFAULT_WINDOW_SECS: i32 = 86_400;
/// Failures in a row that pause a schedule where the client does not say.
const DEFAULT_PAUSE_AFTER: i32 = 5;
/// What the ways of delivery look like.
const DELIVER: &str = "must be like {\"webhook\": \"portal\", \"email\": {\"attach\": false}, \"copy_to\": \"monthly/ranking\"}, any of them";
const NAME: &str = "must be 1 to 100 small letters, digits and single hyphens";

/// A schedule to be made: when it is due, and what is submitted then.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body in the document; `order` reads it")]
pub struct ScheduleBody {
    /// Its name, unique.
    name: String,
    /// Slug of the report.
    report: String,
    /// Five fields, or six with seconds first.
    cron: String,
    /// IANA zone of the pattern.
    #[schema(required = false, default = "UTC")]
    time_zone: String,
    /// Days of the zone that are left out.
    #[schema(required = false)]
    except_days: Vec<NaiveDate>,
    /// What becomes of missed occurrences.
    #[schema(required = false, default = "latest")]
    catch_up: CatchUp,
    /// How late an occurrence may still fire, in seconds.
    #[schema(required = false, default = 86400, minimum = 60, maximum = 31_622_400)]
    window_secs: i32,
    /// What happens while the occurrence before is not done.
    #[schema(required = false, default = "skip")]
    overlap: Overlap,
    /// An occurrence fires up to this much later than due.
    #[schema(required = false, default = 0, minimum = 0, maximum = 3600)]
    jitter_secs: i32,
    /// So many failures in a row pause the schedule.
    #[schema(required = false, default = 5, minimum = 1, maximum = 100)]
    pause_after_failures: i32,
    /// How results are brought to you; failures are told the same ways.
    #[schema(required = false)]
    deliver: Deliver,
    /// As in a submit. Dates may be relative: `today - 30 days`.
    #[schema(value_type = Object, required = false, default = json!({}))]
    parameters: Map<String, Value>,
    /// Format of the file.
    #[schema(required = false, default = "csv")]
    format: Format,
    /// Who reads the file.
    #[schema(required = false, default = "machine")]
    reader: Reader,
    /// Whether a CSV starts with a byte order mark.
    #[schema(required = false, default = false)]
    byte_order_mark: bool,
    /// What separates the fields of a CSV.
    #[schema(required = false, default = ",")]
    delimiter: Delimiter,
    /// How a CSV or NDJSON is compressed as a whole.
    #[schema(required = false)]
    compression: Option<Compression>,
}

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleResource {
    /// Its name in URLs.
    pub name: String,
    /// Slug of the report.
    pub report: String,
    /// Number of the user whose rights count.
    pub owner_id: i32,
    /// Five fields, or six with seconds first.
    pub cron: String,
    /// IANA zone of the pattern.
    pub time_zone: String,
    /// Days of the zone that are left out.
    pub except_days: Vec<NaiveDate>,
    /// What becomes of missed occurrences.
    pub catch_up: CatchUp,
    /// How late an occurrence may still fire, in seconds.
    pub window_secs: i32,
    /// What happens while the occurrence before is not done.
    pub overlap: Overlap,
    /// An occurrence fires up to this much later than due.
    pub jitter_secs: i32,
    /// So many failures in a row pause it.
    pub pause_after_failures: i32,
    /// What is submitted.
    #[schema(value_type = Object)]
    pub submission: Value,
    /// How results are brought to the owner.
    #[schema(value_type = Deliver)]
    pub deliver: Value,
    /// When it fires next; null when its pattern has no next time.
    pub next_due_at: Option<DateTime<Utc>>,
    /// Since when it is paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// `by_hand`, or what paused it.
    pub pause_reason: Option<String>,
    /// What became of its latest occurrences, newest first; only when one schedule is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub occurrences: Option<Vec<OccurrenceResource>>,
}

/// A due time and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct OccurrenceResource {
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// Where it stands.
    pub status: OccurrenceStatus,
    /// Why it was skipped or failed: `missed`, `overlap`, `forbidden`, `owner_inactive`, ….
    pub reason: Option<String>,
    /// The execution that it started.
    pub execution_id: Option<i64>,
    /// Where that stands.
    pub execution_status: Option<String>,
    /// What was delivered of it.
    pub deliveries: Vec<OccurrenceDelivery>,
}

/// How a result was brought to the owner.
#[derive(Debug, Serialize, ToSchema)]
pub struct OccurrenceDelivery {
    /// How.
    pub channel: Channel,
    /// Where it stands.
    pub status: DeliveryStatus,
    /// Why it did not arrive.
    pub error: Option<String>,
}

/// Schedules.
#[derive(Debug, Serialize, ToSchema)]
pub struct ScheduleList {
    /// By name.
    pub schedules: Vec<ScheduleResource>,
}

/// When a schedule is due.
#[derive(Debug, Serialize, ToSchema)]
pub struct UpcomingTimes {
    /// The schedule's zone.
    pub time_zone: String,
    /// In order.
    pub times: Vec<UpcomingTime>,
}

/// A coming due time.
#[derive(Debug, Serialize, ToSchema)]
pub struct UpcomingTime {
    /// In UTC.
    pub due_at: DateTime<Utc>,
    /// What the clocks of the schedule's zone show.
    pub local: String,
}

/// Which due times are fired.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body, which is read field by field")]
pub struct BackfillBody {
    /// The first moment.
    from: DateTime<Utc>,
    /// The moment after the last; not in the future.
    until: DateTime<Utc>,
}

/// Due times that are fired.
#[derive(Debug, Serialize, ToSchema)]
pub struct Backfilled {
    /// How many: those that had started something are not among them.
    pub occurrences: usize,
}

/// An occurrence that was added by hand.
#[derive(Debug, Serialize, ToSchema)]
pub struct StartedOccurrence {
    /// When it is due: now.
    pub due_at: DateTime<Utc>,
}

impl From<Schedule> for ScheduleResource {
    fn from(schedule: Schedule) -> Self {
        let Timing {
            cron,
            time_zone,
            except_days,
            catch_up,
            window_secs,
            overlap,
            jitter_secs,
            pause_after_failures,
        } = schedule.timing;
        Self {
            name: schedule.name,
            report: schedule.report,
            owner_id: schedule.owner_id,
            cron,
            time_zone,
            except_days,
            catch_up,
            window_secs,
            overlap,
            jitter_secs,
            pause_after_failures,
            submission: schedule.submission,
            deliver: schedule.deliver,
            next_due_at: schedule.next_due_at,
            paused_at: schedule.paused_at,
            pause_reason: schedule.pause_reason,
            occurrences: None,
        }
    }
}

impl From<ScheduleHistory> for ScheduleResource {
    fn from(ScheduleHistory { schedule, occurrences, deliveries }: ScheduleHistory) -> Self {
        let resource = |one| occurrence(one, &deliveries);
        let occurrences = occurrences.into_iter().map(resource).collect();
        Self { occurrences: Some(occurrences), ..Self::from(schedule) }
    }
}

fn occurrence(occurrence: Occurrence, deliveries: &[ReportDelivery]) -> OccurrenceResource {
    let Occurrence { due_at, status, reason, execution_id, execution_status } = occurrence;
    let of_it = deliveries.iter().filter(|delivery| delivery.due_at == due_at);
    let deliveries = of_it.map(|delivery| OccurrenceDelivery {
        channel: delivery.channel,
        status: delivery.status,
        error: delivery.error.clone(),
    });
    let deliveries = deliveries.collect();
    OccurrenceResource { due_at, status, reason, execution_id, execution_status, deliveries }
}

/// Make a schedule
///
/// For yourself: each occurrence is a submit with the rights that you have then. What a submit
/// would check is checked now too.
#[utoipa::path(
    post,
    path = "/v1/schedules",
    tag = "schedules",
    request_body(
        content = ScheduleBody,
        example = json!({"name": "weekly-ranking", "report": "gpa-ranking", "cron": "0 6 * * MON",
                         "time_zone": "Africa/Harare", "format": "xlsx",
                         "parameters": {"min_credits": 60}, "deliver": {"email": {"attach": false}}}),
    ),
    responses((
        status = 201,
        description = "Stored.",
        body = ScheduleResource,
        headers(("Location" = String, description = "Path of the schedule.")),
        example = json!(schedule_example()),
    ))
)]
pub async fn create_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let schedule = state.services.create_schedule(&caller, order(object)?).await?;
    let location = format!("/v1/schedules/{}", schedule.name);
    let mut response =
        (StatusCode::CREATED, Json(ScheduleResource::from(schedule))).into_response();
    let location = HeaderValue::try_from(location).expect("a path of ASCII");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

/// List schedules
///
/// Your own, or everybody's with the permission to see all executions.
#[utoipa::path(
    get,
    path = "/v1/schedules",
    tag = "schedules",
    responses((
        status = 200,
        description = "The schedules, by name.",
        body = ScheduleList,
        example = json!({"schedules": [schedule_example()]}),
    ))
)]
pub async fn list_schedules(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    _: NoQuery,
) -> Result<Json<ScheduleList>, Problem> {
    let schedules = state.services.list_schedules(&caller).await?;
    Ok(Json(ScheduleList {
        schedules: schedules.into_iter().map(ScheduleResource::from).collect(),
    }))
}

/// Show a schedule and what became of its latest occurrences
#[utoipa::path(
    get,
    path = "/v1/schedules/{name}",
    tag = "schedules",
    params(("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking")),
    responses((
        status = 200,
        description = "The schedule.",
        body = ScheduleResource,
        example = json!(schedule_example()),
    ))
)]
pub async fn show_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<ScheduleResource>, Problem> {
    Ok(Json(state.services.show_schedule(&caller, &name).await?.into()))
}

/// Delete a schedule
///
/// What it has started stays. The answer is the schedule as it was.
#[utoipa::path(
    delete,
    path = "/v1/schedules/{name}",
    tag = "schedules",
    params(("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking")),
    responses((
        status = 200,
        description = "Deleted.",
        body = ScheduleResource,
        example = json!(schedule_example()),
    ))
)]
pub async fn delete_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<ScheduleResource>, Problem> {
    Ok(Json(state.services.delete_schedule(&caller, &name).await?.into()))
}

/// Pause a schedule
///
/// What it has started goes on. A schedule that is paused stays so.
#[utoipa::path(
    post,
    path = "/v1/schedules/{name}/pause",
    tag = "schedules",
    params(("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking")),
    responses((
        status = 200,
        description = "Paused.",
        body = ScheduleResource,
        example = json!(schedule_example()),
    ))
)]
pub async fn pause_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<ScheduleResource>, Problem> {
    Ok(Json(state.services.pause_schedule(&caller, &name).await?.into()))
}

/// Let a paused schedule go on
///
/// With its next time: what was due meanwhile is left out.
#[utoipa::path(
    post,
    path = "/v1/schedules/{name}/resume",
    tag = "schedules",
    params(("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking")),
    responses((
        status = 200,
        description = "Not paused.",
        body = ScheduleResource,
        example = json!(schedule_example()),
    ))
)]
pub async fn resume_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Json<ScheduleResource>, Problem> {
    Ok(Json(state.services.resume_schedule(&caller, &name).await?.into()))
}

/// Run a schedule now
///
/// Adds an occurrence that is due now, also to a schedule that is paused.
#[utoipa::path(
    post,
    path = "/v1/schedules/{name}/run",
    tag = "schedules",
    params(("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking")),
    responses((
        status = 202,
        description = "On its way.",
        body = StartedOccurrence,
        example = json!({"due_at": "2026-03-02T07:12:44.120531Z"}),
    ))
)]
pub async fn run_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
) -> Result<Response, Problem> {
    let due_at = state.services.run_schedule(&caller, &name).await?;
    Ok((StatusCode::ACCEPTED, Json(StartedOccurrence { due_at })).into_response())
}

/// Fire due times of the past
///
/// Those from `from`, and before `until`, that have started nothing: missed ones, those that were
/// left out, those of before the schedule was made. Relative dates are told from each due time.
/// They wait for no other occurrence.
#[utoipa::path(
    post,
    path = "/v1/schedules/{name}/backfill",
    tag = "schedules",
    params(("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking")),
    request_body(
        content = BackfillBody,
        example = json!({"from": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"}),
    ),
    responses((
        status = 202,
        description = "On their way.",
        body = Backfilled,
        example = json!({"occurrences": 4}),
    ))
)]
pub async fn backfill_schedule(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    _: NoQuery,
    JsonObject(object): JsonObject,
) -> Result<Response, Problem> {
    let (from, until) = read_backfill(object)?;
    let occurrences = state.services.backfill_schedule(&caller, &name, from, until).await?;
    Ok((StatusCode::ACCEPTED, Json(Backfilled { occurrences })).into_response())
}

/// Reads the span of a back-fill.
///
/// # Errors
/// A [`Problem`] with a pointer to each field that is missing, unknown or wrong.
pub fn read_backfill(
    mut object: Map<String, Value>,
) -> Result<(DateTime<Utc>, DateTime<Utc>), Problem> {
    let mut errors = Vec::new();
    for name in ["from", "until"] {
        if !object.contains_key(name) {
            errors.push(FieldError::at(format!("/{name}"), "required", "must be given"));
        }
    }
    let time = "must be a time like 2026-01-01T00:00:00Z";
    let from = field(&mut object, "from", time, &mut errors);
    let until = field(&mut object, "until", time, &mut errors);
    let unknown =
        |name: &String| FieldError::at(pointer(name), "unknown", "there is no such field here");
    errors.extend(object.keys().map(unknown));
    let (Some(from), Some(until), true) = (from, until, errors.is_empty()) else {
        return Err(Problem::with_errors(ProblemKind::InvalidInput, errors));
    };
    Ok((from, until))
}

/// Show when a schedule is due
///
/// Whether it is paused or not.
#[utoipa::path(
    get,
    path = "/v1/schedules/{name}/next",
    tag = "schedules",
    params(
        ("name" = String, Path, description = "Name of the schedule.", example = "weekly-ranking"),
        ("count" = Option<usize>, Query, description = "How many; 5 if not given.",
            minimum = 1, maximum = 100),
    ),
    responses((
        status = 200,
        description = "The next times.",
        body = UpcomingTimes,
        example = json!({"time_zone": "Africa/Harare", "times": [
            {"due_at": "2026-03-02T04:00:00Z", "local": "2026-03-02T06:00:00+02:00"}]}),
    ))
)]
pub async fn next_times(
    State(state): State<ApiState>,
    Authenticated(caller): Authenticated,
    NameInPath(name): NameInPath,
    RawQuery(query): RawQuery,
) -> Result<Json<UpcomingTimes>, Problem> {
    let mut query = QueryReader::new(query.as_deref());
    let count = query.within("count", DEFAULT_UPCOMING, 1..=MAX_UPCOMING);
    query.finish()?;
    let upcoming = state.services.upcoming(&caller, &name, count).await?;
    let times = upcoming.times.into_iter().map(|due_at| UpcomingTime {
        due_at,
        local: due_at.with_timezone(&upcoming.zone).to_rfc3339_opts(SecondsFormat::Secs, false),
    });
    Ok(Json(UpcomingTimes { time_zone: upcoming.zone.name().to_owned(), times: times.collect() }))
}

/// Reads a body: the schedule's own fields, and what is left as a submit.
///
/// # Errors
/// A [`Problem`] with a pointer to each field that is missing, unknown or wrong.
pub fn order(mut object: Map<String, Value>) -> Result<ScheduleOrder, Problem> {
    let mut errors = Vec::new();
    for name in ["name", "report", "cron"] {
        if !object.contains_key(name) {
            errors.push(FieldError::at(format!("/{name}"), "required", "must be given"));
        }
    }
    let body = &mut object;
    let faults = &mut errors;
    let text = "must be text";
    let number = "must be a whole number";
    let name: Option<String> = field(body, "name", NAME, faults);
    let report = field(body, "report", "must be the slug of a report", faults);
    let cron = field(body, "cron", "must be a cron pattern", faults);
    let time_zone = field(body, "time_zone", text, faults);
    let except_days = field(body, "except_days", "must be dates like 2026-12-25", faults);
    let catch_up = field(body, "catch_up", "must be `none`, `latest` or `all`", faults);
    let window_secs = field(body, "window_secs", number, faults);
    let overlap = field(body, "overlap", "must be `skip` or `queue`", faults);
    let jitter_secs = field(body, "jitter_secs", number, faults);
    let pause_after_failures = field(body, "pause_after_failures", number, faults);
    let deliver: Option<Object<Deliver>> = field(body, "deliver", DELIVER, faults);
    let name = name.and_then(|text| {
        let name = text.parse::<ScheduleName>();
        name.map_err(|_| faults.push(FieldError::at("/name", "invalid", NAME))).ok()
    });
    let (Some(name), Some(report), Some(cron), true) = (name, report, cron, errors.is_empty())
    else {
        return Err(Problem::with_errors(ProblemKind::InvalidInput, errors));
    };
    let submission = SubmissionBody::read(object)?.into_submission(None);
    Ok(ScheduleOrder {
        name,
        report,
        deliver: deliver.map(|Object(deliver)| deliver).unwrap_or_default(),
        submission: ScheduledSubmission {
            parameters: submission.parameters,
            format: submission.format,
            presentation: submission.presentation,
        },
        timing: Timing {
            cron,
            time_zone: time_zone.unwrap_or_else(|| "UTC".to_owned()),
            except_days: except_days.unwrap_or_default(),
            catch_up: catch_up.unwrap_or_default(),
            window_secs: window_secs.unwrap_or(DEFAULT_WINDOW_SECS),
            overlap: overlap.unwrap_or_default(),
            jitter_secs: jitter_secs.unwrap_or(0),
            pause_after_failures: pause_after_failures.unwrap_or(DEFAULT_PAUSE_AFTER),
        },
    })
}

fn schedule_example() -> Value {
    json!({
        "name": "weekly-ranking", "report": "gpa-ranking", "owner_id": 2, "cron": "0 6 * * MON",
        "time_zone": "Africa/Harare", "except_days": ["2026-12-28"], "catch_up": "latest",
        "window_secs": 86400, "overlap": "skip", "jitter_secs": 0, "pause_after_failures": 5,
        "submission": {
            "parameters": {"min_credits": 60}, "format": "xlsx",
            "presentation": {"reader": "spreadsheet", "byte_order_mark": false, "delimiter": ","},
        },
        "deliver": {"email": {"attach": false}},
        "next_due_at": "2026-03-02T04:00:00Z", "paused_at": null, "pause_reason": null,
        "occurrences": [{
            "due_at": "2026-02-23T04:00:00Z", "status": "done", "reason": null,
            "execution_id": 71, "execution_status": "completed",
            "deliveries": [{"channel": "email", "status": "delivered", "error": null}],
        }],
    })
}
