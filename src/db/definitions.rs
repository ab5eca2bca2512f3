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

/// Where a definition is kept up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// In a file. Takes over what came over the API.
    Template,
    /// Over the API, by this user.
    Api {
        /// `None` for the operator.
        by: Option<i32>,
    },
}

impl Source {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Template => "template",
            Self::Api { .. } => "api",
        }
    }
}

/// Stores a definition under its slug: the version grows only when the content differs. Two that
/// store at once wait for each other on the row. `None`: the slug is a template's, and this is not.
///
/// # Errors
/// The database's.
pub async fn upsert(
    connection: &mut PgConnection,
    new: &NewDefinition<'_>,
    source: Source,
) -> Result<Option<(i32, i32, Stored)>, sqlx::Error> {
    let by = match source {
        Source::Template => None,
        Source::Api { by } => by,
    };
    let stored: Option<(i32, i32, bool)> = sqlx::query_as(
        "insert into report_definitions
                (slug, name, description, query, parameters, spec, content_sha256, source,
                 created_by)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         on conflict (slug) do update
            set name = excluded.name, description = excluded.description,
                query = excluded.query, parameters = excluded.parameters, spec = excluded.spec,
                content_sha256 = excluded.content_sha256, source = excluded.source,
                is_active = true,
                version = report_definitions.version
                    + case when report_definitions.content_sha256 is distinct from
                                excluded.content_sha256 then 1 else 0 end
          where (report_definitions.content_sha256 is distinct from excluded.content_sha256
                 or not report_definitions.is_active
                 or report_definitions.source <> excluded.source)
            -- What a file says, only the file changes. A template that is gone gives its slug free.
            and (excluded.source = 'template' or report_definitions.source = 'api'
                 or not report_definitions.is_active)
         returning id, version, (xmax = 0) as created",
    )
    .bind(new.slug)
    .bind(new.name)
    .bind(new.description)
    .bind(new.query)
    .bind(new.parameters)
    .bind(new.spec)
    .bind(new.content_sha256)
    .bind(source.as_str())
    .bind(by)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((id, version, created)) = stored else {
        let same: Option<(i32, i32)> = sqlx::query_as(
            "select id, version from report_definitions where slug = $1 and source = $2",
        )
        .bind(new.slug)
        .bind(source.as_str())
        .fetch_optional(connection)
        .await?;
        return Ok(same.map(|(id, version)| (id, version, Stored::Unchanged)));
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
    Ok(Some((id, version, if created { Stored::Created } else { Stored::Updated })))
}

/// What switching a definition off did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deactivated {
    /// It can be run no more.
    Done(i32),
    /// It is a template's.
    IsTemplate,
    /// Nothing can be run under this slug.
    Missing,
}

/// Switches off a definition that came over the API; its executions stay.
///
/// # Errors
/// The database's.
pub async fn deactivate(
    connection: &mut PgConnection,
    slug: &str,
) -> Result<Deactivated, sqlx::Error> {
    let found: Option<(i32, bool)> = sqlx::query_as(
        "select id, source = 'template'
           from report_definitions
          where slug = $1 and is_active and content_sha256 is not null
            for update",
    )
    .bind(slug)
    .fetch_optional(&mut *connection)
    .await?;
    let id = match found {
        None => return Ok(Deactivated::Missing),
        Some((_, true)) => return Ok(Deactivated::IsTemplate),
        Some((id, false)) => id,
    };
    sqlx::query("update report_definitions set is_active = false where id = $1")
        .bind(id)
        .execute(connection)
        .await?;
    Ok(Deactivated::Done(id))
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
