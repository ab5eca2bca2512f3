//! A store that panics when an object is written: the fault that no error type foresees.

use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use registrar::store::Store;

/// The store.
pub fn panicking_store(part_bytes: usize) -> Store {
    Store::from_object_store(Arc::new(Panicking), part_bytes)
}

#[derive(Debug)]
struct Panicking;

impl std::fmt::Display for Panicking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a store that panics")
    }
}

// The signatures are what `async_trait` makes of the trait's.
impl ObjectStore for Panicking {
    fn put_opts<'s, 'p, 'f>(
        &'s self,
        _location: &'p Path,
        _payload: PutPayload,
        _options: PutOptions,
    ) -> BoxFuture<'f, Result<PutResult>>
    where
        's: 'f,
        'p: 'f,
        Self: 'f,
    {
        panic!("a store may be faulty");
    }

    fn put_multipart_opts<'s, 'p, 'f>(
        &'s self,
        _location: &'p Path,
        _options: PutMultipartOptions,
    ) -> BoxFuture<'f, Result<Box<dyn MultipartUpload>>>
    where
        's: 'f,
        'p: 'f,
        Self: 'f,
    {
        panic!("a store may be faulty");
    }

    fn get_opts<'s, 'p, 'f>(
        &'s self,
        _location: &'p Path,
        _options: GetOptions,
    ) -> BoxFuture<'f, Result<GetResult>>
    where
        's: 'f,
        'p: 'f,
        Self: 'f,
    {
        unreachable!("nothing can be written, so nothing is read")
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        locations
    }

    fn list(&self, _prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures::stream::empty().boxed()
    }

    fn list_with_delimiter<'s, 'p, 'f>(
        &'s self,
        _prefix: Option<&'p Path>,
    ) -> BoxFuture<'f, Result<ListResult>>
    where
        's: 'f,
        'p: 'f,
        Self: 'f,
    {
        unreachable!("folders are listed whole")
    }

    fn copy_opts<'s, 'p, 'q, 'f>(
        &'s self,
        _from: &'p Path,
        _to: &'q Path,
        _options: CopyOptions,
    ) -> BoxFuture<'f, Result<()>>
    where
        's: 'f,
        'p: 'f,
        'q: 'f,
        Self: 'f,
    {
        unreachable!("nothing is copied")
    }
}
