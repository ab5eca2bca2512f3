//! Choices of a parameter that a query returns: what may be chosen, and how it is called.
//!
//! The query runs as the report role, in a read-only transaction with short limits, like every SQL
//! that people wrote. What it returns is kept for half a minute for documents and forms. A submit
//! that names something else than these is checked with the server, so that a choice that was
//! added a moment ago is one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::definition::Definition;
use super::error::ReportError;
use super::parameters::{BoundParameters, Parameter, ParameterError, ParameterErrorCode, Value};
use super::source::{ReportDatabase, SessionLimits};

/// The most choices that are shown: a person picks one from a list.
pub const MAX_SHOWN: usize = 1_000;
/// How long a query for choices may take, and wait for a lock.
const TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long choices are kept, and of how many queries.
const KEPT_FOR: Duration = Duration::from_secs(30);
const MAX_KEPT: usize = 256;

/// One choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What a submit says, in PostgreSQL's text form.
    pub value: String,
    /// What a person reads.
    pub label: Option<String>,
}

/// What a query for choices returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    /// At most [`MAX_SHOWN`], in the query's order.
    pub all: Vec<Choice>,
    /// Whether there are no others.
    pub is_complete: bool,
}

/// A time zone and a query.
type Key = (String, String);

/// What queries returned a moment ago, and when that was.
#[derive(Debug, Default)]
pub(super) struct ChoicesCache(Mutex<HashMap<Key, (Instant, Arc<Choices>)>>);

impl ChoicesCache {
    fn get(&self, key: &Key) -> Option<Arc<Choices>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, choices) = kept.get(key)?;
        (since.elapsed() < KEPT_FOR).then(|| Arc::clone(choices))
    }

    fn keep(&self, key: Key, choices: &Arc<Choices>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (since, _)| since.elapsed() < KEPT_FOR);
        }
        if kept.len() < MAX_KEPT {
            kept.insert(key, (Instant::now(), Arc::clone(choices)));
        }
    }
}

fn limits(definition: &Definition) -> SessionLimits {
    let time_zone = definition.time_zone().name().to_owned();
    SessionLimits { timeout: TIMEOUT, lock_timeout: LOCK_TIMEOUT, time_zone }
}

fn key(definition: &Definition, query: &str) -> Key {
    (definition.time_zone().name().to_owned(), query.to_owned())
}

/// Asks, or remembers, what may be chosen for a parameter; `None` where it has no such query.
///
/// # Errors
/// [`ReportError`]
pub async fn list(
    database: &ReportDatabase,
    definition: &Definition,
    parameter: &Parameter,
) -> Result<Option<Arc<Choices>>, ReportError> {
    let Some(query) = parameter.choices_query() else { return Ok(None) };
    let key = key(definition, query);
    if let Some(choices) = database.choices().get(&key) {
        return Ok(Some(choices));
    }
    let asked = async {
        let mut session = database.begin(&limits(definition), "registrar choices").await?;
        let checked = session.check(query).await?;
        let listed = session.choices(&checked, MAX_SHOWN + 1).await?;
        session.close().await;
        Ok::<_, ReportError>(listed)
    };
    let mut all: Vec<Choice> =
        bounded(asked).await?.into_iter().map(|(value, label)| Choice { value, label }).collect();
    let is_complete = all.len() <= MAX_SHOWN;
    all.truncate(MAX_SHOWN);
    let choices = Arc::new(Choices { all, is_complete });
    database.choices().keep(key, &choices);
    Ok(Some(choices))
}

/// Finds values that are not among the choices.
///
/// # Errors
/// [`ReportError`]: the server could not be asked.
pub async fn check_values(
    database: &ReportDatabase,
    definition: &Definition,
    bound: &BoundParameters,
) -> Result<Vec<ParameterError>, ReportError> {
    let mut errors = Vec::new();
    for parameter in definition.parameters() {
        let Some(query) = parameter.choices_query() else { continue };
        let given = bound.get(parameter.name()).map(texts).unwrap_or_default();
        let kept = database.choices().get(&key(definition, query));
        let is_known =
            |text: &String| kept.iter().any(|kept| kept.all.iter().any(|c| c.value == *text));
        if given.iter().all(is_known) {
            continue;
        }
        let asked = async {
            let mut session = database.begin(&limits(definition), "registrar choices").await?;
            let checked = session.check(query).await?;
            let unknown = session.not_among_choices(&checked, &given).await?;
            session.close().await;
            Ok::<_, ReportError>(unknown)
        };
        errors.extend(bounded(asked).await?.into_iter().map(|index| ParameterError {
            pointer: match parameter.is_list() {
                true => format!("/parameters/{}/{index}", parameter.name()),
                false => format!("/parameters/{}", parameter.name()),
            },
            code: ParameterErrorCode::Choice,
            message: format!(
                "must be one of the choices that this report's `parameters` lists{}",
                if kept.as_ref().is_some_and(|kept| !kept.is_complete) { " in part" } else { "" }
            ),
        }));
    }
    Ok(errors)
}

/// Has the server check the queries for choices as the report role. Returns what is wrong.
///
/// # Errors
/// [`ReportError`]: the server could not be asked.
pub async fn check_queries(
    database: &ReportDatabase,
    definition: &Definition,
) -> Result<Vec<String>, ReportError> {
    let mut problems = Vec::new();
    for parameter in definition.parameters() {
        let Some(query) = parameter.choices_query() else { continue };
        let asked = async {
            // Each its own: the first fault of a transaction ends it.
            let mut session = database.begin(&limits(definition), "registrar choices").await?;
            let checked = session.check(query).await?;
            session.explain(&checked, std::iter::empty()).await?;
            session.close().await;
            Ok::<_, ReportError>(checked)
        };
        let problem = match bounded(asked).await {
            Err(error @ ReportError::Sql { .. }) | Err(error @ ReportError::NoColumns) => {
                Some(error.public_message())
            }
            Err(error) => return Err(error),
            Ok(checked) => match checked.columns.as_slice() {
                [value] | [value, _] => fits(parameter, &value.type_name),
                columns => Some(format!("must return one or two columns, not {}", columns.len())),
            },
        };
        if let Some(problem) = problem {
            problems.push(format!("parameter `{}` choices_query: {problem}", parameter.name()));
        }
    }
    Ok(problems)
}

/// What is wrong with the type of the column that is chosen from.
fn fits(parameter: &Parameter, type_name: &str) -> Option<String> {
    let of_one = parameter.parameter_type().pg_type(false);
    let is_text = matches!(type_name, "text" | "varchar" | "char" | "bpchar" | "name");
    let fits = if of_one == "text" { is_text } else { type_name == of_one };
    (!fits).then(|| format!("must return `{of_one}` in its first column, not `{type_name}`"))
}

/// The server's own time-outs are the net under this one.
async fn bounded<T>(asked: impl Future<Output = Result<T, ReportError>>) -> Result<T, ReportError> {
    tokio::time::timeout(TIMEOUT * 2, asked)
        .await
        .unwrap_or(Err(ReportError::Timeout { limit_secs: TIMEOUT.as_secs() }))
}

/// The given values as PostgreSQL writes them; none for NULL. Types without a query for choices
/// have none either.
fn texts(value: &Value) -> Vec<String> {
    fn all<T: ToString>(list: &[T]) -> Vec<String> {
        list.iter().map(T::to_string).collect()
    }
    match value {
        Value::Text(text) => vec![text.clone()],
        Value::Integer(number) => vec![number.to_string()],
        Value::Bigint(number) => vec![number.to_string()],
        Value::Uuid(uuid) => vec![uuid.to_string()],
        Value::TextList(list) => list.clone(),
        Value::IntegerList(list) => all(list),
        Value::BigintList(list) => all(list),
        Value::UuidList(list) => all(list),
        Value::Null
        | Value::Numeric(_)
        | Value::Boolean(_)
        | Value::Date(_)
        | Value::Timestamptz(_)
        | Value::NumericList(_)
        | Value::BooleanList(_)
        | Value::DateList(_)
        | Value::TimestamptzList(_) => Vec::new(),
    }
}
