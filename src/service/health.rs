//! Whether what use cases need is there. Answers are for people and never hold an address, a
//! key or a message of a server.

use bytes::Bytes;

use super::Services;
use crate::schema;
use crate::store::ObjectKey;

impl Services {
    /// Asks the database for an answer.
    ///
    /// # Errors
    /// That it does not answer, in words.
    pub async fn check_database(&self) -> Result<(), String> {
        sqlx::query("select 1").execute(&self.db).await.map(|_| ()).map_err(|error| {
            tracing::warn!(%error, "the database does not answer");
            "the database does not answer".to_owned()
        })
    }

    /// Compares the schema with the one that this binary works with.
    ///
    /// # Errors
    /// The first difference, or that it cannot be read, in words.
    pub async fn check_schema(&self) -> Result<(), String> {
        schema::check_current(&self.db).await.map_err(|error| match error {
            schema::SchemaError::NotCurrent(_) => error.to_string(),
            _ => "the schema cannot be read".to_owned(),
        })
    }

    /// Writes an object to the store, reads it back and deletes it.
    ///
    /// # Errors
    /// What does not work, in words.
    pub async fn check_store(&self) -> Result<(), String> {
        // A name of its own: two processes that check at once do not meet.
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = ObjectKey::Probe(&name).path();
        let content = Bytes::from(name.clone());
        let failed = |what: &'static str| {
            move |error| {
                tracing::warn!(%error, "{what}");
                what.to_owned()
            }
        };
        self.store
            .put(&path, content.clone())
            .await
            .map_err(failed("the store cannot be written"))?;
        let read = self.store.get(&path).await.map_err(failed("the store cannot be read"));
        self.store.delete(&path).await.map_err(failed("nothing can be deleted from the store"))?;
        if read? == content { Ok(()) } else { Err("the store gave back other bytes".to_owned()) }
    }
}
