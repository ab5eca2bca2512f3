//! Bytes of a dump to bytes in the store and back: compression and age encryption as one stream.
//!
//! Everything here blocks and belongs on a thread of its own. age authenticates each 64 KiB and
//! the end, so a byte that was changed, or a cut, is found before it is handed on.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use age::x25519::Recipient;
use bytes::Bytes;
use flate2::write::{GzDecoder, GzEncoder};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::error::BackupError;
use crate::config::{BackupCompression, BackupConfig};

/// Bytes moved at a time.
const CHUNK_BYTES: usize = 128 * 1024;

/// For whom a backup is.
#[derive(Debug, Clone)]
pub enum Encryption {
    /// For whoever has the identity of one of these.
    Age(Vec<Recipient>),
    /// For anybody.
    Plain,
}

impl Encryption {
    /// What the settings say. `plain` is the word of a person that it may be open.
    ///
    /// # Errors
    /// [`BackupError::NotEncrypted`] and [`BackupError::BadRecipient`]
    pub fn from_settings(config: &BackupConfig, plain: bool) -> Result<Self, BackupError> {
        if plain {
            return Ok(Self::Plain);
        }
        let parse = |text: &String| {
            text.trim().parse::<Recipient>().map_err(|_| BackupError::BadRecipient(text.clone()))
        };
        let recipients: Vec<_> = config.encrypt_to.iter().map(parse).collect::<Result<_, _>>()?;
        match (recipients.is_empty(), config.allow_plain) {
            (false, _) => Ok(Self::Age(recipients)),
            (true, true) => Ok(Self::Plain),
            (true, false) => Err(BackupError::NotEncrypted),
        }
    }

    /// For the recipients that the settings name; without any, for anybody.
    ///
    /// # Errors
    /// [`BackupError::BadRecipient`]
    pub fn where_named(config: &BackupConfig) -> Result<Self, BackupError> {
        match Self::from_settings(config, false) {
            Err(BackupError::NotEncrypted) => Ok(Self::Plain),
            decided => decided,
        }
    }

    /// The recipients as text.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::Age(recipients) => recipients.iter().map(ToString::to_string).collect(),
            Self::Plain => Vec::new(),
        }
    }
}

/// How a dump is compressed.
#[derive(Debug, Clone, Copy)]
pub struct Compression {
    /// In which form.
    pub kind: BackupCompression,
    /// How hard.
    pub level: u32,
}

/// The end of the name of what is stored, for who opens it by hand.
pub(super) fn extension(compression: BackupCompression, encryption: &Encryption) -> String {
    let compressed = match compression {
        BackupCompression::Zstd => "zst",
        BackupCompression::Gzip => "gz",
    };
    match encryption {
        Encryption::Age(_) => format!("{compressed}.age"),
        Encryption::Plain => compressed.to_owned(),
    }
}

/// Encrypts a small object, which is not compressed.
///
/// # Errors
/// [`BackupError::Io`]
pub fn seal_small(bytes: &[u8], encryption: &Encryption) -> Result<Vec<u8>, BackupError> {
    let Encryption::Age(recipients) = encryption else { return Ok(bytes.to_vec()) };
    let sealed = || {
        let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
        let mut writer = encryptor.wrap_output(Vec::new())?;
        writer.write_all(bytes)?;
        writer.finish()
    };
    sealed().map_err(BackupError::io("encrypt a small object"))
}

/// Opens what [`seal_small`] encrypted.
///
/// # Errors
/// [`BackupError::Io`]: no identity fits, or it was changed.
pub fn open_small(bytes: &[u8], identities: &Identities) -> Result<Vec<u8>, BackupError> {
    let opened = || {
        let decryptor = age::Decryptor::new(bytes).map_err(io::Error::other)?;
        let identities = identities.0.iter().map(|identity| &**identity as &dyn age::Identity);
        let mut plain = Vec::new();
        decryptor.decrypt(identities).map_err(io::Error::other)?.read_to_end(&mut plain)?;
        Ok(plain)
    };
    opened().map_err(BackupError::io("decrypt a small object with the given identities"))
}

/// Compresses and encrypts `input` into `output`. Returns how many bytes came in.
pub(super) fn seal<W: Write>(
    input: impl Read,
    output: W,
    compression: Compression,
    encryption: &Encryption,
) -> io::Result<(u64, W)> {
    match encryption {
        Encryption::Plain => compress(input, output, compression),
        Encryption::Age(recipients) => {
            let recipients = recipients.iter().map(|r| r as &dyn age::Recipient);
            let encryptor =
                age::Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
            let writer = encryptor.wrap_output(output)?;
            let (bytes, writer) = compress(input, writer, compression)?;
            Ok((bytes, writer.finish()?))
        }
    }
}

fn compress<W: Write>(
    mut input: impl Read,
    output: W,
    Compression { kind, level }: Compression,
) -> io::Result<(u64, W)> {
    match kind {
        BackupCompression::Zstd => {
            let level = i32::try_from(level).expect("checked with the settings");
            let mut encoder = zstd::Encoder::new(output, level)?;
            let bytes = copy(&mut input, &mut encoder)?;
            Ok((bytes, encoder.finish()?))
        }
        BackupCompression::Gzip => {
            let mut encoder = GzEncoder::new(output, flate2::Compression::new(level));
            let bytes = copy(&mut input, &mut encoder)?;
            Ok((bytes, encoder.finish()?))
        }
    }
}

/// As `io::copy`, with a buffer that fits pipes.
fn copy(input: &mut impl Read, output: &mut impl Write) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        output.write_all(&buffer[..count])?;
        bytes += count as u64;
    }
}

/// Opens what is stored.
#[derive(Clone, Default)]
pub struct Identities(std::sync::Arc<Vec<Box<dyn age::Identity + Send + Sync>>>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Identities {
    /// Reads a file of age identities, as `age-keygen` and `registrar backup key` write it.
    ///
    /// # Errors
    /// [`BackupError::BadIdentities`]
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let bad = |reason: String| BackupError::BadIdentities { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let mut identities: Vec<Box<dyn age::Identity + Send + Sync>> = Vec::new();
        for line in lines {
            let identity: age::x25519::Identity = line
                .parse()
                .map_err(|_| bad("a line is no identity (AGE-SECRET-KEY-1…)".to_owned()))?;
            identities.push(Box::new(identity));
        }
        if identities.is_empty() {
            return Err(bad("it holds none".to_owned()));
        }
        Ok(Self(std::sync::Arc::new(identities)))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A new pair: the text of an identity file, and the recipient.
pub fn new_key() -> (secrecy::SecretString, String) {
    use secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public().to_string();
    let secret = identity.to_string();
    let text = format!("# public key: {recipient}\n{}\n", secret.expose_secret());
    (secrecy::SecretString::from(text), recipient)
}

/// Why stored bytes could not be opened.
#[derive(Debug)]
pub(super) enum OpenError {
    /// No identity fits.
    WrongKey,
    /// The bytes are not what was written.
    Damaged(String),
    /// Whoever takes the dump takes no more.
    Output(io::Error),
}

/// Decrypts and decompresses `input` into `output`.
pub(super) fn open(
    input: impl Read,
    output: impl Write,
    compression: BackupCompression,
    identities: Option<&Identities>,
) -> Result<(), OpenError> {
    let Some(identities) = identities else { return decompress(input, output, compression) };
    let decryptor = age::Decryptor::new_buffered(BufReader::with_capacity(CHUNK_BYTES, input))
        .map_err(not_opened)?;
    let identities = identities.0.iter().map(|identity| &**identity as &dyn age::Identity);
    let plain = decryptor.decrypt(identities).map_err(not_opened)?;
    decompress(plain, output, compression)
}

fn not_opened(error: age::DecryptError) -> OpenError {
    match error {
        age::DecryptError::NoMatchingKeys => OpenError::WrongKey,
        error => OpenError::Damaged(format!("it cannot be decrypted ({error})")),
    }
}

fn decompress(
    mut input: impl Read,
    output: impl Write,
    compression: BackupCompression,
) -> Result<(), OpenError> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut decoder: Box<dyn Finish> = match compression {
        BackupCompression::Zstd => Box::new(
            zstd::stream::write::Decoder::new(Told::new(output)).map_err(OpenError::Output)?,
        ),
        BackupCompression::Gzip => Box::new(GzDecoder::new(Told::new(output))),
    };
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => decoder.feed(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(OpenError::Damaged(format!("it cannot be read ({error})"))),
        }
    }
    decoder.end()
}

/// Tells failures of the output from failures of the bytes.
struct Told<W> {
    output: W,
    failed: Option<io::Error>,
}

impl<W: Write> Told<W> {
    fn new(output: W) -> Self {
        Self { output, failed: None }
    }
}

impl<W: Write> Write for Told<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes).inspect_err(|error| self.failed = Some(error.kind().into()))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

trait Finish {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), OpenError>;
    fn end(&mut self) -> Result<(), OpenError>;
}

impl<W: Write> Finish for zstd::stream::write::Decoder<'_, Told<W>> {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), OpenError> {
        let fed = self.write_all(bytes);
        fed.map_err(|error| blame(self.get_mut().failed.take(), &error))
    }

    fn end(&mut self) -> Result<(), OpenError> {
        let flushed = self.flush();
        flushed.map_err(|error| blame(self.get_mut().failed.take(), &error))
    }
}

impl<W: Write> Finish for GzDecoder<Told<W>> {
    fn feed(&mut self, bytes: &[u8]) -> Result<(), OpenError> {
        let fed = self.write_all(bytes);
        fed.map_err(|error| blame(self.get_mut().failed.take(), &error))
    }

    fn end(&mut self) -> Result<(), OpenError> {
        let ended = self.try_finish();
        ended.map_err(|error| blame(self.get_mut().failed.take(), &error))
    }
}

fn blame(output: Option<io::Error>, error: &io::Error) -> OpenError {
    match output {
        Some(error) => OpenError::Output(error),
        None => OpenError::Damaged(format!("it cannot be decompressed ({error})")),
    }
}

/// Cuts what is written into parts, and counts and hashes on the way.
pub(super) struct PartSink {
    part: Vec<u8>,
    part_bytes: usize,
    size_bytes: u64,
    hash: Sha256,
    parts: mpsc::Sender<Bytes>,
}

impl PartSink {
    pub(super) fn new(parts: mpsc::Sender<Bytes>, part_bytes: usize) -> Self {
        Self { part: Vec::new(), part_bytes, size_bytes: 0, hash: Sha256::new(), parts }
    }

    /// Sends the rest. Returns size and SHA-256 of all.
    pub(super) fn finish(mut self) -> io::Result<(u64, String)> {
        self.send()?;
        Ok((self.size_bytes, hex::encode(self.hash.finalize())))
    }

    fn send(&mut self) -> io::Result<()> {
        if self.part.is_empty() {
            return Ok(());
        }
        self.hash.update(&self.part);
        let part = Bytes::from(std::mem::take(&mut self.part));
        self.parts
            .blocking_send(part)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the upload has ended"))
    }
}

impl Write for PartSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.part_bytes - self.part.len());
        if self.part.capacity() < self.part_bytes && self.part.len() + taken > CHUNK_BYTES {
            // Small backups stay small; a large one gets its part in one piece.
            self.part.reserve_exact(self.part_bytes - self.part.len());
        }
        self.part.extend_from_slice(&bytes[..taken]);
        self.size_bytes += taken as u64;
        if self.part.len() == self.part_bytes {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // parts have a fixed size: the last one goes with `finish`
    }
}

/// Reads chunks that come over a channel, and counts and hashes them.
pub(super) struct ChunkSource {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
    size_bytes: u64,
    hash: Sha256,
}

impl ChunkSource {
    pub(super) fn new(chunks: mpsc::Receiver<Bytes>) -> Self {
        Self { chunks, chunk: Bytes::new(), size_bytes: 0, hash: Sha256::new() }
    }

    /// Reads what is left, and returns size and SHA-256 of all.
    pub(super) fn finish(mut self) -> (u64, String) {
        while self.next_chunk() {}
        (self.size_bytes, hex::encode(self.hash.finalize()))
    }

    fn next_chunk(&mut self) -> bool {
        let Some(chunk) = self.chunks.blocking_recv() else { return false };
        self.hash.update(&chunk);
        self.size_bytes += chunk.len() as u64;
        self.chunk = chunk;
        true
    }
}

impl Read for ChunkSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            if !self.next_chunk() {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (Encryption, Identities) {
        let identity = age::x25519::Identity::generate();
        let recipient = identity.to_public();
        (
            Encryption::Age(vec![recipient]),
            Identities(std::sync::Arc::new(vec![Box::new(identity)])),
        )
    }

    fn sealed(kind: BackupCompression, encryption: &Encryption, text: &[u8]) -> Vec<u8> {
        seal(text, Vec::new(), Compression { kind, level: 1 }, encryption).unwrap().1
    }

    #[test]
    fn what_is_sealed_comes_back() {
        let (encryption, identities) = keys();
        let text = b"rows and rows ".repeat(50_000);
        for kind in [BackupCompression::Zstd, BackupCompression::Gzip] {
            for (encryption, identities) in
                [(&encryption, Some(&identities)), (&Encryption::Plain, None)]
            {
                let stored = sealed(kind, encryption, &text);
                assert!(stored.len() < text.len() / 10);
                let mut back = Vec::new();
                open(&stored[..], &mut back, kind, identities).unwrap();
                assert!(back == text, "{kind:?}");
            }
        }
    }

    #[test]
    fn a_byte_that_flipped_a_cut_and_a_wrong_key_are_told_apart() {
        let (encryption, identities) = keys();
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let stored = sealed(BackupCompression::Zstd, &encryption, &text);
        let attempt = |bytes: &[u8], identities| {
            open(bytes, io::sink(), BackupCompression::Zstd, Some(identities))
        };
        for at in (0..stored.len()).step_by(stored.len() / 40).chain([stored.len() - 1]) {
            let mut flipped = stored.clone();
            flipped[at] ^= 1;
            // In the header the recipient's line may be hit: then the key no longer fits.
            assert!(attempt(&flipped, &identities).is_err(), "byte {at}");
        }
        for length in [0, 10, stored.len() / 2, stored.len() - 1] {
            let cut = attempt(&stored[..length], &identities);
            assert!(matches!(cut, Err(OpenError::Damaged(_))), "cut at {length}: {cut:?}");
        }
        let (_, others) = keys();
        assert!(matches!(attempt(&stored, &others), Err(OpenError::WrongKey)));
    }
}
