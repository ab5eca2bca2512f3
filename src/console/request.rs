//! What handlers take out of a request: who is signed in, and forms that are ours.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use url::form_urlencoded;

use super::Console;
use crate::api::{Problem, ProblemKind, TraceId, actor, is_same_site, session_secret};
use crate::service::sessions::Session;

/// Most fields of a form. A list of choices has one for each.
const MAX_FIELDS: usize = 5_000;

/// Who is signed in. Nobody: a 401, which becomes the page for signing in.
#[derive(Debug)]
pub struct SignedIn(pub Session);

impl FromRequestParts<Console> for SignedIn {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Problem> {
        let secret =
            session_secret(&parts.headers).ok_or_else(|| Problem::unauthenticated(false))?;
        let trace_id = parts.extensions.get::<TraceId>().cloned().unwrap_or_default();
        let services = &console.api.services;
        let session =
            services.authenticate_session(secret, actor(parts), trace_id.to_string()).await?;
        Ok(Self(session))
    }
}

/// The fields of a form or of a query, in order.
#[derive(Debug, Default, Clone)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Reads `a=b&c=d`. Bytes that are no UTF-8 become U+FFFD, and NUL, which PostgreSQL cannot
    /// store, goes.
    pub fn parse(text: &[u8]) -> Self {
        let pairs = form_urlencoded::parse(text).take(MAX_FIELDS);
        Self(pairs.map(|(name, value)| (name.into_owned(), value.replace('\0', ""))).collect())
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// The first value of a field, unless it is empty.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).map(str::trim).filter(|text| !text.is_empty())
    }

    /// Every value of a field.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Keys of rows, one a line, with commas between the parts of each.
pub fn keys(fields: &Fields) -> Vec<Vec<&str>> {
    let lines = fields.get("keys").unwrap_or_default().lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty())
        .map(|line| line.split(',').map(str::trim).collect())
        .collect()
}

/// The query of a page. What a page does not know is left alone: people mend links by hand.
#[derive(Debug)]
pub struct Query(pub Fields);

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(Fields::parse(parts.uri.query().unwrap_or_default().as_bytes())))
    }
}

/// A form that one of our pages sent for the session that it comes with.
#[derive(Debug)]
pub struct Change {
    /// Who changes something.
    pub session: Session,
    /// With which fields.
    pub fields: Fields,
}

impl FromRequest<Console> for Change {
    type Rejection = Problem;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let SignedIn(session) = SignedIn::from_request_parts(&mut parts, console).await?;
        let OpenForm(fields) =
            OpenForm::from_request(Request::from_parts(parts, body), console).await?;
        let given = fields.get("csrf").unwrap_or_default();
        if !is_equal(given.as_bytes(), session.csrf_token.as_bytes()) {
            return Err(foreign());
        }
        Ok(Self { session, fields })
    }
}

/// A form that comes from our own site, as far as the browser tells: signing in, where there is no
/// session yet.
#[derive(Debug)]
pub struct OpenForm(pub Fields);

impl FromRequest<Console> for OpenForm {
    type Rejection = Problem;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Problem> {
        if !is_same_site(request.headers()) {
            return Err(foreign());
        }
        let limit = console.api.services.config.http.max_body_bytes.get();
        let bytes = Bytes::from_request(request, console).await.map_err(|_| {
            Problem::new(ProblemKind::BodyTooLarge, format!("a form has at most {limit} bytes"))
        })?;
        Ok(Self(Fields::parse(&bytes)))
    }
}

fn foreign() -> Problem {
    let detail = "the form is of another session: go back, reload the page and try again";
    Problem::new(ProblemKind::ForeignForm, detail)
}

/// Compares without telling by its time how much was right.
fn is_equal(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len()
        && given.iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// A part of the path; empty, which names nothing, where it is not UTF-8.
#[derive(Debug)]
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let text = text.map(|Path(text)| text).unwrap_or_default();
        Ok(Self(if text.contains('\0') { String::new() } else { text }))
    }
}

/// Two parts of the path: a name and what is done with it. Empty, which names nothing, where one is
/// not UTF-8 or holds NUL.
#[derive(Debug)]
pub struct Action(pub String, pub String);

impl<S: Send + Sync> FromRequestParts<S> for Action {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let texts = Path::<(String, String)>::from_request_parts(parts, state).await;
        let (name, verb) = texts.map(|Path(texts)| texts).unwrap_or_default();
        let is_legal = !name.contains('\0') && !verb.contains('\0');
        Ok(if is_legal { Self(name, verb) } else { Self(String::new(), String::new()) })
    }
}

/// A number in the path; 0, which nothing has, for other text.
#[derive(Debug, Clone, Copy)]
pub struct Number(pub i64);

impl<S: Send + Sync> FromRequestParts<S> for Number {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let Name(text) = Name::from_request_parts(parts, state).await?;
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        Ok(Self(if is_number { text.parse().unwrap_or(0) } else { 0 }))
    }
}
