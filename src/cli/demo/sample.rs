//! Loads the sample data. The files hold the TESC specifics; this only runs them in order.

use anyhow::Context;
use sqlx::PgPool;

/// The files of `sample-data/`, in order.
const FILES: [(&str, &str); 10] = [
    ("00_prepare", include_str!("../../../sample-data/00_prepare.sql")),
    ("10_roles", include_str!("../../../sample-data/10_roles.sql")),
    ("20_staff", include_str!("../../../sample-data/20_staff.sql")),
    ("30_catalogue", include_str!("../../../sample-data/30_catalogue.sql")),
    ("40_sessions", include_str!("../../../sample-data/40_sessions.sql")),
    ("50_students", include_str!("../../../sample-data/50_students.sql")),
    ("60_results", include_str!("../../../sample-data/60_results.sql")),
    ("70_innovation", include_str!("../../../sample-data/70_innovation.sql")),
    ("80_audit", include_str!("../../../sample-data/80_audit.sql")),
    ("90_finish", include_str!("../../../sample-data/90_finish.sql")),
];

/// Fills an empty database with so many students, as of today, in one transaction.
///
/// # Errors
/// The tables are not empty, or the database fails.
pub async fn load(db: &PgPool, students: u32) -> anyhow::Result<()> {
    let mut tx = db.begin().await?;
    sqlx::query(
        "select set_config('sample.students', $1, true),
                set_config('sample.today', current_date::text, true)",
    )
    .bind(students.to_string())
    .execute(&mut *tx)
    .await?;
    for (name, sql) in FILES {
        sqlx::raw_sql(sql)
            .execute(&mut *tx)
            .await
            .with_context(|| format!("load sample-data/{name}.sql"))?;
    }
    tx.commit().await?;
    Ok(())
}

/// Whether the database has users already, which the sample data would collide with.
///
/// # Errors
/// The database's.
pub async fn is_loaded(db: &PgPool) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select exists (select from users)").fetch_one(db).await
}
