//! Signs of load: why a run should wait between two chunks.

use std::collections::VecDeque;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use crate::policy::PauseWhen;

/// Positions that are remembered: one a look. The oldest that a replica has not replayed is among
/// them however many there are.
const MAX_POSITIONS: usize = 600;

/// Looks for the signs that a policy names.
#[derive(Debug)]
pub(super) struct Watch {
    signs: PauseWhen,
    positions: Positions,
}

impl Watch {
    pub(super) fn new(signs: PauseWhen) -> Self {
        Self { signs, positions: Positions::default() }
    }

    /// Why the run should wait now, if it should.
    pub(super) async fn look(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<String>, sqlx::Error> {
        if let Some(most) = self.signs.replica_lag
            && self.replica_lag(connection).await? > most.duration()
        {
            return Ok(Some(format!("a replica is over {most} behind")));
        }
        if let Some(most) = self.signs.oldest_transaction {
            let age: Option<f64> = sqlx::query_scalar(
                "select max(extract(epoch from now() - xact_start))::float8
                   from pg_stat_activity
                  where pid <> pg_backend_pid() and backend_type = 'client backend'
                    and datname = current_database()",
            )
            .fetch_one(&mut *connection)
            .await?;
            if age.is_some_and(|age| age > most.duration().as_secs_f64()) {
                return Ok(Some(format!("a transaction has been open for over {most}")));
            }
        }
        if let Some(most) = self.signs.load_per_core
            && load_per_core().is_some_and(|load| load > most)
        {
            return Ok(Some(format!("this machine's load is over {most} per core")));
        }
        Ok(None)
    }

    /// How far the slowest replica is behind. The server's own figure stands still where a replica
    /// does not answer, so the time since a position was written that it has not replayed counts
    /// as well.
    async fn replica_lag(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Duration, sqlx::Error> {
        let (written, replayed, said): (i64, Option<i64>, Option<f64>) = sqlx::query_as(
            "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint,
                    min(pg_wal_lsn_diff(replay_lsn, '0/0'))::bigint,
                    max(extract(epoch from replay_lag))::float8
               from pg_stat_replication",
        )
        .fetch_one(connection)
        .await?;
        let seen = self.positions.behind(Instant::now(), written, replayed);
        let said = Duration::try_from_secs_f64(said.unwrap_or_default()).unwrap_or_default();
        Ok(seen.max(said))
    }
}

/// When which position of the log had been written, oldest first.
#[derive(Debug, Default)]
struct Positions(VecDeque<(Instant, i64)>);

impl Positions {
    /// How long ago the oldest position was seen that is not replayed, and remembers the newest.
    fn behind(&mut self, now: Instant, written: i64, replayed: Option<i64>) -> Duration {
        let Some(replayed) = replayed else {
            self.0.clear();
            return Duration::ZERO;
        };
        while self.0.front().is_some_and(|(_, position)| *position <= replayed) {
            self.0.pop_front();
        }
        let behind = self.0.front().map(|(at, _)| now.duration_since(*at));
        let is_new = self.0.back().is_none_or(|(_, position)| *position < written);
        if is_new && self.0.len() < MAX_POSITIONS {
            self.0.push_back((now, written));
        }
        behind.unwrap_or_default()
    }
}

/// The load of this machine over the last minute, where `/proc` tells it.
fn load_per_core() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let load: f64 = text.split(' ').next()?.parse().ok()?;
    let cores = std::thread::available_parallelism().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "machines have fewer cores")]
    let cores = cores.get() as f64;
    Some(load / cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_stands_still_is_further_behind_with_every_look() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut positions = Positions::default();
        let mut behind =
            |secs, written, replayed| positions.behind(at(secs), written, replayed).as_secs();
        assert_eq!(behind(0, 100, Some(90)), 0);
        assert_eq!(behind(1, 200, Some(99)), 1);
        assert_eq!(behind(5, 300, Some(99)), 5);
        assert_eq!(behind(6, 300, Some(150)), 5, "100 is replayed, 200 was seen at 1");
        assert_eq!(behind(7, 300, Some(300)), 0);
        assert_eq!(behind(9, 300, Some(300)), 0);
        assert_eq!(behind(10, 400, None), 0, "there is no replica");
    }
}
