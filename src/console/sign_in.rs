//! Signing in and out.

use axum::extract::{FromRequest, Request, State};
use axum::http::header::{RETRY_AFTER, SET_COOKIE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use minijinja::context;

use super::Console;
use super::request::{Change, OpenForm, Query};
use super::response::{html, see_other};
use crate::api::{Problem, SESSION_COOKIE, actor, session_secret};
use crate::service::ServiceError;

const REFUSED: &str =
    "That did not match an active account. Names and passwords are case-sensitive.";

/// The form.
pub async fn show(State(console): State<Console>, Query(query): Query) -> Response {
    let next = query.get("next").filter(|path| is_ours(path)).unwrap_or("/");
    html(StatusCode::OK, form(&console, next, None))
}

/// Opens a session with a new secret, whatever the browser had before.
pub async fn sign_in(
    State(console): State<Console>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let actor = actor(&parts);
    let before = session_secret(&parts.headers).map(str::to_owned);
    let OpenForm(fields) =
        OpenForm::from_request(Request::from_parts(parts, body), &console).await?;
    let services = &console.api.services;
    let next = fields.get("next").filter(|path| is_ours(path)).unwrap_or("/");
    let outcome = match fields.filled("token") {
        Some(token) => services.sign_in_with_token(token, before.as_deref(), &actor).await,
        None => {
            let username = fields.get("username").unwrap_or_default();
            let password = fields.get("password").unwrap_or_default();
            services.sign_in(username, password, before.as_deref(), &actor).await
        }
    };
    match outcome {
        Ok(secret) => {
            let mut response = see_other(next);
            response.headers_mut().insert(SET_COOKIE, cookie(&console, &secret));
            Ok(response)
        }
        Err(ServiceError::Unauthenticated) => {
            Ok(html(StatusCode::UNAUTHORIZED, form(&console, next, Some(REFUSED))))
        }
        Err(error @ ServiceError::TooManySignIns { retry_after_secs }) => {
            let page = form(&console, next, Some(&error.to_string()));
            let mut response = html(StatusCode::TOO_MANY_REQUESTS, page);
            response.headers_mut().insert(RETRY_AFTER, retry_after_secs.into());
            Ok(response)
        }
        Err(error) => Err(error.into()),
    }
}

/// Ends the session on the server, and takes the cookie away.
pub async fn sign_out(
    State(console): State<Console>,
    request: Request,
) -> Result<Response, Problem> {
    let secret = session_secret(request.headers()).unwrap_or_default().to_owned();
    let Change { session, fields: _ } = Change::from_request(request, &console).await?;
    console.api.services.sign_out(&secret, &session.caller.actor).await?;
    let mut response = see_other("/sign-in");
    response.headers_mut().insert(SET_COOKIE, cookie(&console, ""));
    Ok(response)
}

fn form(console: &Console, next: &str, fault: Option<&str>) -> String {
    console.pages.render_alone("sign_in.html", "Sign in", context! { next, fault })
}

/// A path on this site: `//host` and `/\host` would be another one.
fn is_ours(path: &str) -> bool {
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    path.starts_with('/') && !path.starts_with("//") && is_plain
}

/// The session's cookie; with an empty secret, its end.
fn cookie(console: &Console, secret: &str) -> HeaderValue {
    let config = &console.api.services.config.console;
    let secure = if config.secure_cookies { "; Secure" } else { "" };
    let max_age = match secret {
        "" => 0,
        _ => u64::from(config.max_age_hours.get()) * 3_600,
    };
    let text = format!(
        "{SESSION_COOKIE}={secret}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}{secure}"
    );
    HeaderValue::try_from(text).expect("hexadecimal digits and ASCII")
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn nobody_is_sent_elsewhere() {
        for (path, expected) in [
            ("/executions/7?a=b", true),
            ("/", true),
            ("//evil.example", false),
            ("/\\evil.example", false),
            ("https://evil.example", false),
            ("javascript:alert(1)", false),
            ("/a\r\nSet-Cookie: x=y", false),
            ("", false),
        ] {
            assert_eq!(is_ours(path), expected, "{path}");
        }
    }
}
