//! One column of a Parquet file: cells in, an encoded column chunk out.

use bytes::Bytes;
use parquet::basic::{LogicalType, Repetition, TimeUnit, Type as Physical};
use parquet::column::writer::{ColumnCloseResult, ColumnWriter, get_typed_column_writer_mut};
use parquet::data_type::{
    BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType,
    Int32Type, Int64Type,
};
use parquet::errors::Result;
use parquet::file::properties::WriterPropertiesPtr;
use parquet::schema::types::{ColumnDescPtr, Type};

use super::super::calendar::{EPOCH_DAYS, MICROS_PER_DAY, Zone};
use super::super::text::push_text;
use super::super::{Cell, Kind, Precision};
use super::chunk::{Chunk, PageCompressor};
use super::decimal;

/// Most digits that 64 bits hold all of.
const LONG_DIGITS: u8 = 18;
/// Bytes of a decimal with more digits.
const WIDE_BYTES: usize = 16;
/// What a NULL needs, in bytes.
const NULL_BYTES: usize = 2;
/// What a value of a fixed size is taken to need, in bytes, and every other one beside its bytes.
const VALUE_BYTES: usize = 8;

/// A column: the cells that are not encoded yet, and the chunk of those that are.
pub(super) struct FileColumn {
    name: String,
    kind: Kind,
    values: Values,
    /// For each cell 0 if it is NULL, else 1.
    levels: Vec<i16>,
    chunk: Option<Chunk>,
}

/// Cells that are not encoded yet, without the NULLs, in the form that they are stored in.
enum Values {
    Bool(Vec<bool>),
    Int(Vec<i64>),
    Float(Vec<f32>),
    Double(Vec<f64>),
    LongDecimal { precision: u8, scale: u8, values: Vec<i64> },
    WideDecimal { precision: u8, scale: u8, values: Blobs },
    Date(Vec<i32>),
    Moment(Vec<i64>),
    Time(Vec<i64>),
    Text(Blobs),
    Bytes(Blobs),
}

/// What became of a cell.
pub(super) enum Pushed {
    /// It is held and takes about this many bytes.
    Held { bytes: usize },
    /// The type cannot hold it: NULL is held in its place.
    AsNull,
    /// The column holds something else.
    WrongKind,
}

impl FileColumn {
    pub fn new(name: String, kind: Kind, precision: Option<Precision>) -> Self {
        let values = match (kind, precision) {
            (Kind::Bool, _) => Values::Bool(Vec::new()),
            (Kind::Int, _) => Values::Int(Vec::new()),
            (Kind::Float, Some(Precision::Single)) => Values::Float(Vec::new()),
            (Kind::Float, _) => Values::Double(Vec::new()),
            (Kind::Numeric, Some(Precision::Decimal { precision, scale }))
                if precision <= LONG_DIGITS =>
            {
                Values::LongDecimal { precision, scale, values: Vec::new() }
            }
            (Kind::Numeric, Some(Precision::Decimal { precision, scale })) => {
                Values::WideDecimal { precision, scale, values: Blobs::default() }
            }
            (Kind::Numeric, _) | (Kind::Text | Kind::Json | Kind::Uuid, _) => {
                Values::Text(Blobs::default())
            }
            (Kind::Bytes, _) => Values::Bytes(Blobs::default()),
            (Kind::Date, _) => Values::Date(Vec::new()),
            (Kind::Timestamp | Kind::TimestampTz, _) => Values::Moment(Vec::new()),
            (Kind::Time, _) => Values::Time(Vec::new()),
        };
        Self { name, kind, values, levels: Vec::new(), chunk: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The column as the file's schema has it.
    pub fn schema(&self) -> Result<Type> {
        let (physical, logical) = match &self.values {
            Values::Bool(_) => (Physical::BOOLEAN, None),
            Values::Int(_) => (Physical::INT64, None),
            Values::Float(_) => (Physical::FLOAT, None),
            Values::Double(_) => (Physical::DOUBLE, None),
            Values::LongDecimal { precision, scale, .. } => {
                (Physical::INT64, Some(decimal_type(*precision, *scale)))
            }
            Values::WideDecimal { precision, scale, .. } => {
                (Physical::FIXED_LEN_BYTE_ARRAY, Some(decimal_type(*precision, *scale)))
            }
            Values::Date(_) => (Physical::INT32, Some(LogicalType::Date)),
            Values::Moment(_) => {
                let is_instant = self.kind == Kind::TimestampTz;
                (Physical::INT64, Some(LogicalType::timestamp(is_instant, TimeUnit::MICROS)))
            }
            Values::Time(_) => (Physical::INT64, Some(LogicalType::time(false, TimeUnit::MICROS))),
            Values::Text(_) if self.kind == Kind::Json => {
                (Physical::BYTE_ARRAY, Some(LogicalType::Json))
            }
            Values::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
            Values::Bytes(_) => (Physical::BYTE_ARRAY, None),
        };
        let mut builder = Type::primitive_type_builder(&self.name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical);
        if let Values::LongDecimal { precision, scale, .. }
        | Values::WideDecimal { precision, scale, .. } = &self.values
        {
            builder = builder
                .with_precision(i32::from(*precision))
                .with_scale(i32::from(*scale))
                .with_length(WIDE_BYTES as i32);
        }
        builder.build()
    }

    /// Takes the next cell.
    pub fn push(&mut self, cell: Cell<'_>, zone: &mut Zone) -> Pushed {
        if cell == Cell::Null {
            self.levels.push(0);
            return Pushed::Held { bytes: NULL_BYTES };
        }
        let pushed = self.push_value(cell, zone);
        match pushed {
            Pushed::Held { .. } => self.levels.push(1),
            Pushed::AsNull => self.levels.push(0),
            Pushed::WrongKind => {}
        }
        pushed
    }

    fn push_value(&mut self, cell: Cell<'_>, zone: &mut Zone) -> Pushed {
        let held = match (&mut self.values, cell) {
            (Values::Bool(values), Cell::Bool(value)) => push(values, Some(value)),
            (Values::Int(values), Cell::Int(value)) => push(values, Some(value)),
            (Values::Float(values), Cell::Float4(value)) => push(values, Some(value)),
            (Values::Double(values), Cell::Float4(value)) => push(values, Some(value.into())),
            (Values::Double(values), Cell::Float8(value)) => push(values, Some(value)),
            (Values::LongDecimal { precision, scale, values }, Cell::Numeric(value)) => {
                let unscaled = decimal::unscaled(&value, *precision, *scale);
                push(values, unscaled.and_then(|unscaled| i64::try_from(unscaled).ok()))
            }
            (Values::WideDecimal { precision, scale, values }, Cell::Numeric(value)) => {
                let unscaled = decimal::unscaled(&value, *precision, *scale);
                unscaled.map(|unscaled| {
                    values.push(|data| data.extend_from_slice(&unscaled.to_be_bytes()))
                })
            }
            (Values::Date(values), Cell::Date(days)) => push(values, unix_days(days)),
            (Values::Moment(values), Cell::Timestamp(micros) | Cell::TimestampTz(micros)) => {
                push(values, unix_micros(micros))
            }
            (Values::Time(values), Cell::Time(micros)) => {
                push(values, (0..MICROS_PER_DAY).contains(&micros).then_some(micros))
            }
            (Values::Text(values), _) => Some(values.push(|data| push_text(data, cell, zone))),
            (Values::Bytes(values), Cell::Bytes(bytes)) => {
                Some(values.push(|data| data.extend_from_slice(bytes)))
            }
            _ => return Pushed::WrongKind,
        };
        held.map_or(Pushed::AsNull, |bytes| Pushed::Held { bytes })
    }

    /// Encodes the cells taken so far into the column's chunk, beginning it if need be.
    pub fn encode(
        &mut self,
        column: &ColumnDescPtr,
        properties: &WriterPropertiesPtr,
        compressor: &PageCompressor,
    ) -> Result<()> {
        if self.levels.is_empty() {
            return Ok(());
        }
        let chunk = self.chunk.get_or_insert_with(|| Chunk::new(column, properties, compressor));
        let writer = &mut chunk.writer;
        let levels = &self.levels;
        match &mut self.values {
            Values::Bool(values) => write::<BoolType>(writer, values, levels),
            Values::Int(values)
            | Values::LongDecimal { values, .. }
            | Values::Moment(values)
            | Values::Time(values) => write::<Int64Type>(writer, values, levels),
            Values::Float(values) => write::<FloatType>(writer, values, levels),
            Values::Double(values) => write::<DoubleType>(writer, values, levels),
            Values::Date(values) => write::<Int32Type>(writer, values, levels),
            Values::WideDecimal { values, .. } => {
                write::<FixedLenByteArrayType>(writer, &mut values.take(), levels)
            }
            Values::Text(values) | Values::Bytes(values) => {
                write::<ByteArrayType>(writer, &mut values.take(), levels)
            }
        }?;
        self.levels.clear();
        Ok(())
    }

    /// Ends the chunk: its bytes and what the row group is to say of them. `None` if there is
    /// none.
    pub fn end_chunk(&mut self) -> Result<Option<(Bytes, ColumnCloseResult)>> {
        self.chunk.take().map(Chunk::end).transpose()
    }
}

fn decimal_type(precision: u8, scale: u8) -> LogicalType {
    LogicalType::decimal(i32::from(scale), i32::from(precision))
}

/// Adds a value of a fixed size, if there is one.
fn push<T>(values: &mut Vec<T>, value: Option<T>) -> Option<usize> {
    value.map(|value| {
        values.push(value);
        VALUE_BYTES
    })
}

fn unix_days(days: i32) -> Option<i32> {
    let is_finite = days != i32::MAX && days != i32::MIN;
    is_finite.then(|| i32::try_from(i64::from(days) + EPOCH_DAYS).ok()).flatten()
}

fn unix_micros(micros: i64) -> Option<i64> {
    let is_finite = micros != i64::MAX && micros != i64::MIN;
    is_finite.then(|| micros.checked_add(EPOCH_DAYS * MICROS_PER_DAY)).flatten()
}

fn write<T: DataType>(
    writer: &mut ColumnWriter<'static>,
    values: &mut Vec<T::T>,
    levels: &[i16],
) -> Result<()> {
    get_typed_column_writer_mut::<T>(writer).write_batch(values, Some(levels), None)?;
    values.clear();
    Ok(())
}

/// Values of any length, one behind the other.
#[derive(Default)]
struct Blobs {
    data: Vec<u8>,
    ends: Vec<usize>,
}

impl Blobs {
    fn push(&mut self, push: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.data.len();
        push(&mut self.data);
        self.ends.push(self.data.len());
        self.data.len() - start + VALUE_BYTES
    }

    /// All values; they share one piece of memory.
    fn take<T: From<ByteArray>>(&mut self) -> Vec<T> {
        let room = Vec::with_capacity(self.data.len());
        let data = Bytes::from(std::mem::replace(&mut self.data, room));
        let mut start = 0;
        let value =
            |end| T::from(ByteArray::from(data.slice(std::mem::replace(&mut start, end)..end)));
        self.ends.drain(..).map(value).collect()
    }
}
