//! Binds a caller's values to the parameters of a definition.

use std::fmt;

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::{Map, Value as Json};

use super::read::Problem;
use super::relative::Clock;
use super::{MAX_NAME_BYTES, Parameter, ParameterError, ParameterErrorCode as Code, Value};
use crate::report::definition::Definition;
use crate::report::sql::NamedSql;

/// How many unknown names are reported: a caller who sends more sends something else altogether.
const MAX_UNKNOWN: usize = 20;

/// Values for every parameter of a definition, checked and resolved.
///
/// Its `Debug` shows names and types only: values can be personal data.
#[derive(Clone, PartialEq)]
pub struct BoundParameters {
    /// In the order of the SQL's `$n`.
    parameters: Vec<BoundParameter>,
}

/// One parameter with its value.
#[derive(Clone, PartialEq)]
pub struct BoundParameter {
    name: String,
    pg_type: &'static str,
    value: Value,
}

impl Definition {
    /// Checks the given parameters and fills in defaults.
    ///
    /// `today` is the day in the definition's time zone and `now` the instant that relative values
    /// are told from; both come from the caller, so that they are the database's.
    ///
    /// # Errors
    ///
    /// Every parameter that is wrong: declared ones in their order, then unknown ones.
    pub fn bind(
        &self,
        given: &Map<String, Json>,
        today: NaiveDate,
        now: DateTime<Utc>,
    ) -> Result<BoundParameters, Vec<ParameterError>> {
        let clock = Clock { today, now, time_zone: self.time_zone() };
        read_all(self, given, |parameter| match given.get(parameter.name()) {
            Some(Json::Null) if parameter.default_value().is_some() => {
                let expected = "must not be null: leave it out for its default";
                Err(vec![Problem::new(Code::Type, expected)])
            }
            Some(Json::Null) => null(parameter),
            Some(value) => parameter.read(value, Some(&clock)),
            None => match parameter.default_value() {
                Some(default) => parameter.read(default, Some(&clock)),
                None => null(parameter),
            },
        })
    }
}

impl BoundParameters {
    /// Reads back what [`Self::canonical_json`] gave. Nothing is relative in it and no default is
    /// filled in: every parameter must be there. A null stands for NULL also where there is a
    /// default: a default could be turned off once.
    ///
    /// # Errors
    ///
    /// Every parameter that does not fit the definition, which then is not the one that the values
    /// were bound to.
    pub fn from_canonical(
        definition: &Definition,
        stored: &Json,
    ) -> Result<Self, Vec<ParameterError>> {
        let Json::Object(stored) = stored else {
            let message = "must be an object".to_owned();
            let pointer = "/parameters".to_owned();
            return Err(vec![ParameterError { pointer, code: Code::Type, message }]);
        };
        read_all(definition, stored, |parameter| match stored.get(parameter.name()) {
            Some(Json::Null) => null(parameter),
            Some(value) => parameter.read(value, None),
            None => Err(vec![Problem::new(Code::Required, "must be stored")]),
        })
    }

    /// The resolved values as a JSON object with sorted keys: equal parameters are equal texts.
    pub fn canonical_json(&self) -> Json {
        let mut sorted: Vec<_> = self.parameters.iter().collect();
        sorted.sort_by(|a, b| a.name.cmp(&b.name));
        Json::Object(sorted.into_iter().map(|p| (p.name.clone(), p.value.to_json())).collect())
    }

    /// The values in the order of a query's `$1`, `$2`, …: one of the definition that they were
    /// bound to.
    pub fn values_of<'a>(&'a self, query: &'a NamedSql) -> impl Iterator<Item = &'a Value> {
        query.names().map(|name| self.get(name).expect("every name in the SQL is declared"))
    }

    /// The parameters: first those of the main query in the order of its `$1`, `$2`, ….
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &BoundParameter> {
        self.parameters.iter()
    }

    /// The value of the parameter `name`.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.parameters.iter().find(|p| p.name == name).map(|p| &p.value)
    }
}

impl BoundParameter {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its type in PostgreSQL: also of a NULL.
    pub fn pg_type(&self) -> &'static str {
        self.pg_type
    }

    /// Its value.
    pub fn value(&self) -> &Value {
        &self.value
    }
}

impl fmt::Debug for BoundParameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.parameters).finish()
    }
}

impl fmt::Debug for BoundParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.pg_type)
    }
}

fn read_all(
    definition: &Definition,
    given: &Map<String, Json>,
    read: impl Fn(&Parameter) -> Result<Value, Vec<Problem>>,
) -> Result<BoundParameters, Vec<ParameterError>> {
    let mut parameters = Vec::with_capacity(definition.parameters().len());
    let mut errors = Vec::new();
    for parameter in definition.parameters() {
        match read(parameter) {
            Ok(value) => parameters.push(BoundParameter {
                name: parameter.name().to_owned(),
                pg_type: parameter.pg_type(),
                value,
            }),
            Err(problems) => {
                errors.extend(problems.into_iter().map(|problem| problem.at(parameter.name())));
            }
        }
    }
    errors.extend(unknown(definition, given));
    if !errors.is_empty() {
        return Err(errors);
    }
    // Those of the main query first, in its order; those of other sheets alone behind them.
    let number = |p: &BoundParameter| {
        definition.query().names().position(|n| n == p.name).unwrap_or(usize::MAX)
    };
    parameters.sort_by_key(number);
    Ok(BoundParameters { parameters })
}

fn null(parameter: &Parameter) -> Result<Value, Vec<Problem>> {
    if parameter.is_required() {
        Err(vec![Problem::new(Code::Required, "must be given")])
    } else {
        Ok(Value::Null)
    }
}

fn unknown(
    definition: &Definition,
    given: &Map<String, Json>,
) -> impl Iterator<Item = ParameterError> {
    let names: Vec<&str> = definition.parameters().iter().map(Parameter::name).collect();
    let message = if names.is_empty() {
        "is unknown: this report has no parameters".to_owned()
    } else {
        format!("is unknown: the parameters of this report are `{}`", names.join("`, `"))
    };
    given.keys().filter(move |name| !names.contains(&name.as_str())).take(MAX_UNKNOWN).map(
        move |name| ParameterError {
            pointer: pointer(name, None),
            code: Code::Unknown,
            message: message.clone(),
        },
    )
}

impl Problem {
    fn at(self, name: &str) -> ParameterError {
        let Self { item, code, expected } = self;
        ParameterError { pointer: pointer(name, item), code, message: expected }
    }
}

/// A JSON pointer as in RFC 6901. A name that no parameter can have is left out: it may be
/// anything, of any length.
fn pointer(name: &str, item: Option<usize>) -> String {
    if name.len() > MAX_NAME_BYTES {
        return "/parameters".to_owned();
    }
    let name = name.replace('~', "~0").replace('/', "~1");
    match item {
        Some(index) => format!("/parameters/{name}/{index}"),
        None => format!("/parameters/{name}"),
    }
}
