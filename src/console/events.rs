//! Progress as server-sent events: each is a part of the page anew, where it has changed.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures::stream;
use minijinja::context;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::Console;
use super::executions::Shown;
use super::lifecycle::is_moving;
use super::pages::of;
use crate::api::{Problem, ProblemKind};
use crate::service::sessions::Session;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(700);
/// After this a browser asks anew, with its session: a page that is left open must not hold a
/// place for ever, nor see more than its session may.
const MAX_FOLLOWING: Duration = Duration::from_secs(60);
/// When a browser asks again after a stream has ended.
const RECONNECT_MS: u64 = 1_000;

/// What can be followed.
#[derive(Debug, Clone, Copy)]
pub enum Followable {
    /// An execution of a report.
    Execution(i64),
    /// A run of a policy.
    Run(i64),
}

/// Follows until the end, or for a while.
///
/// # Errors
/// 503 where too many are followed.
pub fn follow(console: Console, session: Session, what: Followable) -> Result<Response, Problem> {
    let place = console.api.place_to_wait().ok_or_else(|| {
        Problem::retry_soon(ProblemKind::Overloaded, "too many pages are followed")
    })?;
    let following = Following {
        console,
        session,
        what,
        last: None,
        until: Instant::now() + MAX_FOLLOWING,
        has_ended: false,
        _place: place,
    };
    let body = Body::from_stream(stream::unfold(following, Following::next));
    Ok(([(CONTENT_TYPE, "text/event-stream")], body).into_response())
}

struct Following {
    console: Console,
    session: Session,
    what: Followable,
    last: Option<String>,
    until: Instant,
    has_ended: bool,
    _place: OwnedSemaphorePermit,
}

impl Following {
    async fn next(mut self) -> Option<(Result<String, Infallible>, Self)> {
        while !self.has_ended && Instant::now() < self.until {
            if self.last.is_some() {
                tokio::select! {
                    () = self.console.api.shutdown.cancelled() => return None,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
            let (panel, is_moving) = self.look().await?;
            if self.last.as_ref() != Some(&panel) {
                let lines: String = panel.lines().map(|line| format!("data: {line}\n")).collect();
                let mut event = format!("retry: {RECONNECT_MS}\nevent: news\n{lines}\n");
                self.last = Some(panel);
                if !is_moving {
                    event.push_str(END);
                    self.has_ended = true;
                }
                return Some((Ok(event), self));
            }
            if !is_moving {
                self.has_ended = true;
                return Some((Ok(END.to_owned()), self));
            }
        }
        None
    }

    /// The part of the page, and whether more will come. `None` ends the stream: the browser asks
    /// again, and is told what is wrong.
    async fn look(&self) -> Option<(String, bool)> {
        let (services, caller) = (&self.console.api.services, &self.session.caller);
        let pages = &self.console.pages;
        match self.what {
            Followable::Execution(id) => {
                let followed = services.follow(caller, id).await.ok()?;
                let running = services.running_secs(&followed.execution).await.ok()?;
                let is_moving = !followed.execution.status.is_final();
                let e = of(Shown::new(caller, followed, running));
                Some((pages.render("execution_panel.html", context! { e }), is_moving))
            }
            Followable::Run(id) => {
                let detail = services.show_run(caller, id).await.ok()?;
                let is_moving = is_moving(detail.run.status);
                Some((pages.render("run_panel.html", context! { r => of(detail) }), is_moving))
            }
        }
    }
}

const END: &str = "event: end\ndata: end\n\n";
