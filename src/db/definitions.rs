//! `report_definitions` and `report_definition_versions`.

use serde_json::Value;
use sqlx::{PgConnection, PgExecutor, PgPool};

/// A definition as it is stored; the service makes a typed one of it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct StoredDefinition {
    /// Its number.
    pub id: i32,
    /// Its public name.
    pub slug: String,
    /// Grows by one when the content changes.
    pub version: i32,
    /// SQL with `:name` placeholders.
    pub query: String,
    /// Everything else, as the definition's own JSON.
    pub spec: Value,
    /// SHA-256 of the content, in hex.
    pub content_sha256: String,
}

/// Lists what can be run, by slug.
///
/// # Errors
/// The database's.
pub async fn list_active(pool: &PgPool) -> Result<Vec<StoredDefinition>, sqlx::Error> {
    sqlx::query_as(
        "select id, slug, version, query, spec, content_sha256
           from report_definitions
          where is_active and content_sha256 is not null
          order by slug",
    )
    .fetch_all(pool)
    .await
}

/// Finds what can be run under a slug.
///
/// # Errors
/// The database's.
pub async fn find_active(
    connection: &mut PgConnection,
    slug: &str,
) -> Result<Option<StoredDefinition>, sqlx::Error> {
    sqlx::query_as(
        "select id, slug, version, query, spec, content_sha256
           from report_definitions
          where slug = $1 and is_active and content_sha256 is not null",
    )
    .bind(slug)
    .fetch_optional(connection)
    .await
}

/// Finds a definition under a slug, whether or not it can still be run.
///
/// # Errors
/// The database's.
pub async fn find_by_slug(
    connection: &mut PgConnection,
    slug: &str,
) -> Result<Option<StoredDefinition>, sqlx::Error> {
    sqlx::query_as(
        "select id, slug, version, query, spec, content_sha256
           from report_definitions
          where slug = $1 and content_sha256 is not null",
    )
    .bind(slug)
    .fetch_optional(connection)
    .await
}

/// Finds a version, whether or not it is the current one.
///
/// # Errors
/// The database's.
pub async fn find_version(
    executor: impl PgExecutor<'_>,
    id: i32,
    version: i32,
) -> Result<Option<StoredDefinition>, sqlx::Error> {
    sqlx::query_as(
        "select d.id, d.slug, v.version, v.query, v.spec, v.content_sha256
           from report_definition_versions v
           join report_definitions d on d.id = v.report_definition_id
          where v.report_definition_id = $1 and v.version = $2",
    )
    .bind(id)
    .bind(version)
    .fetch_optional(executor)
    .await
}

/// A definition to be stored.
#[derive(Debug)]
pub struct NewDefinition<'a> {
    /// Its public name.
    pub slug: &'a str,
    /// Title, for the seed's `name` column.
    pub name: &'a str,
    /// For the analyst.
    pub description: &'a str,
    /// SQL with `:name` placeholders.
    pub query: &'a str,
    /// Parameters, for the seed's column.
    pub parameters: &'a Value,
    /// Everything but the SQL.
    pub spec: &'a Value,
    /// SHA-256 of the content, in hex.
    pub content_sha256: &'a str,
}

/// What storing a definition did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stored {
    /// It was new.
    Created,
    /// Its content changed, and its version grew.
    Updated,
    /// Nothing changed.
    Unchanged,
}

/// Stores a template's definition under its slug: the version grows only when the content differs.
/// Two processes that sync at once wait for each other on the row.
///
/// # Errors
/// The database's.
pub async fn upsert_template(
    connection: &mut PgConnection,
    new: &NewDefinition<'_>,
) -> Result<(i32, i32, Stored), sqlx::Error> {
    let stored: Option<(i32, i32, bool)> = sqlx::query_as(
        "insert into report_definitions
                (slug, name, description, query, parameters, spec, content_sha256, source)
         values ($1, $2, $3, $4, $5, $6, $7, 'template')
         on conflict (slug) do update
            set name = excluded.name, description = excluded.description,
                query = excluded.query, parameters = excluded.parameters, spec = excluded.spec,
                content_sha256 = excluded.content_sha256, source = 'template', is_active = true,
                version = report_definitions.version
                    + case when report_definitions.content_sha256 is distinct from
                                excluded.content_sha256 then 1 else 0 end
          where report_definitions.content_sha256 is distinct from excluded.content_sha256
             or not report_definitions.is_active
         returning id, version, (xmax = 0) as created",
    )
    .bind(new.slug)
    .bind(new.name)
    .bind(new.description)
    .bind(new.query)
    .bind(new.parameters)
    .bind(new.spec)
    .bind(new.content_sha256)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((id, version, created)) = stored else {
        let (id, version) =
            sqlx::query_as("select id, version from report_definitions where slug = $1")
                .bind(new.slug)
                .fetch_one(connection)
                .await?;
        return Ok((id, version, Stored::Unchanged));
    };
    sqlx::query(
        "insert into report_definition_versions
                (report_definition_id, version, query, parameters, spec, content_sha256)
         values ($1, $2, $3, $4, $5, $6)
         on conflict do nothing",
    )
    .bind(id)
    .bind(version)
    .bind(new.query)
    .bind(new.parameters)
    .bind(new.spec)
    .bind(new.content_sha256)
    .execute(connection)
    .await?;
    Ok((id, version, if created { Stored::Created } else { Stored::Updated }))
}

/// Switches off templates that are no longer among `slugs`; their executions stay.
///
/// # Errors
/// The database's.
pub async fn deactivate_templates_except(
    connection: &mut PgConnection,
    slugs: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "update report_definitions
            set is_active = false
          where source = 'template' and is_active and slug <> all ($1)
         returning slug",
    )
    .bind(slugs)
    .fetch_all(connection)
    .await
}
