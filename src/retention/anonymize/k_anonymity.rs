//! How small the groups are that people of the table hide in, by columns that help to identify.

use sqlx::PgPool;

use super::plan::Plan;
use crate::retention::sql::{self, Ident};

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KAnonymity {
    /// Columns that together could identify.
    pub quasi: Vec<String>,
    /// The smallest group that is large enough.
    pub k: u32,
}

/// Groups that are too small.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct SmallGroups {
    /// The size that was asked for.
    pub k: u32,
    /// Groups smaller than that.
    pub groups: i64,
    /// People in them.
    pub people: i64,
    /// The smallest.
    pub smallest: Option<i64>,
}

impl KAnonymity {
    /// Counts groups of closed accounts that are smaller than k. Values are not told: they could
    /// identify.
    ///
    /// # Errors
    /// The database's.
    pub async fn small_groups(&self, db: &PgPool, plan: &Plan) -> Result<SmallGroups, sqlx::Error> {
        let columns: Vec<_> = self.quasi.iter().map(Ident::new).collect();
        let by = sql::list("t.", &columns);
        let closed = Ident::new(plan.subject.account.deleted_at.as_str());
        let statement = format!(
            "select count(*), coalesce(sum(people), 0)::bigint, min(people)
               from (select count(*) as people
                       from {} t
                      where t.{closed} is not null
                      group by {by}
                     having count(*) < $1) as small",
            plan.subject.table,
        );
        let (groups, people, smallest) =
            sqlx::query_as(sql::dynamic(statement)).bind(i64::from(self.k)).fetch_one(db).await?;
        Ok(SmallGroups { k: self.k, groups, people, smallest })
    }
}
