use std::collections::BTreeSet;

use registrar::retention::catalog::{Catalog, OnDelete};
use registrar::retention::sql::{Ident, TableName};
use sqlx::{Connection, Executor, PgConnection};

use crate::support::database::{Contents, TestDatabase};

async fn read(contents: Contents, ddl: &str) -> Catalog {
    let database = TestDatabase::create(contents).await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    connection.execute(sqlx::raw_sql(crate::support::database::sql(ddl))).await.unwrap();
    let catalog = Catalog::read(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    database.drop_now().await;
    catalog
}

#[tokio::test]
async fn the_catalog_of_an_unknown_schema_is_read_whole() {
    let catalog = read(
        Contents::Nothing,
        "create schema \"Odd\";
         create domain \"Odd\".code as varchar(7) not null;
         create table \"Odd\".\"Parent\" (
             a uuid, \"b c\" date, width \"Odd\".code, twice int generated always as (1 + 1) stored,
             n bigint generated always as identity, primary key (\"b c\", a), unique (width));
         create table \"Odd\".child (
             id text primary key, pa uuid, pb date, boss text references \"Odd\".child,
             foreign key (pb, pa) references \"Odd\".\"Parent\" on delete cascade);
         create index on \"Odd\".child (pa, pb) include (boss);
         create index on \"Odd\".child (lower(id)) where boss is null;
         create table \"Odd\".parted (id int, at timestamptz, primary key (id, at))
             partition by range (at);
         create table \"Odd\".parted_1 partition of \"Odd\".parted default;",
    )
    .await;
    let parent = catalog.table(&TableName::new("Odd", "Parent")).unwrap();
    assert_eq!(parent.primary_key, [Ident::new("b c"), Ident::new("a")]);
    let width = parent.column(&Ident::new("width")).unwrap();
    assert_eq!((width.base_type.as_str(), width.max_chars), ("varchar", Some(7)));
    assert!(width.not_null);
    assert!(parent.column(&Ident::new("twice")).unwrap().is_generated);
    assert!(parent.column(&Ident::new("n")).unwrap().is_identity_always);
    assert_eq!(parent.referenced_by[0].on_delete, OnDelete::Cascade);
    let child = catalog.table(&TableName::new("Odd", "child")).unwrap();
    assert!(child.is_self_referencing());
    assert!(child.has_index_on(&[Ident::new("pb"), Ident::new("pa")]));
    assert!(!child.has_index_on(&[Ident::new("boss")]));
    assert!(catalog.table(&TableName::new("Odd", "parted")).unwrap().is_partitioned);
    assert!(catalog.table(&TableName::new("Odd", "parted_1")).is_none());
}

#[tokio::test]
async fn children_come_before_their_parents() {
    let catalog = read(Contents::Schema, "").await;
    let all: BTreeSet<_> = catalog.tables().map(|table| table.name.clone()).collect();
    let order: Vec<_> = catalog.order(&all).into_iter().flatten().collect();
    assert_eq!(order.len(), all.len());
    for table in catalog.tables() {
        for key in table.references.iter().filter(|key| key.parent != key.child) {
            let at = |name: &TableName| order.iter().position(|other| other == name).unwrap();
            assert!(at(&key.child) < at(&key.parent), "{}", key.name);
        }
    }
}
