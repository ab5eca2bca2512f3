use proptest::prelude::*;

use super::*;

/// Every placeholder as `text`.
fn render(sql: &str) -> String {
    match NamedSql::parse(sql) {
        Ok(named) => named.render(|_| "text"),
        Err(error) => format!("error: {error}"),
    }
}

fn names(sql: &str) -> Vec<String> {
    NamedSql::parse(sql).unwrap().names().map(str::to_owned).collect()
}

#[test]
fn placeholders_become_numbered_typed_operands() {
    let cases = [
        ("select :a", "select ($1::text)"),
        ("select :a, :b, :a", "select ($1::text), ($2::text), ($1::text)"),
        ("select :b, :a", "select ($1::text), ($2::text)"),
        ("select :a::date", "select ($1::text)::date"),
        ("select x::int4 = :a", "select x::int4 = ($1::text)"),
        ("select x:: int, :a", "select x:: int, ($1::text)"),
        ("select :ab, :a", "select ($1::text), ($2::text)"),
        ("select :_a1, :a_", "select ($1::text), ($2::text)"),
        ("select 1 limit:a", "select 1 limit($1::text)"),
        ("select 1 where x=:a", "select 1 where x=($1::text)"),
        ("select -:a", "select -($1::text)"),
        ("select(:a)", "select(($1::text))"),
        ("select f(n => :a, m := :b)", "select f(n => ($1::text), m := ($2::text))"),
        ("select f(n :=:a)", "select f(n :=($1::text))"),
        ("select :a||:b", "select ($1::text)||($2::text)"),
        ("select :a\n", "select ($1::text)"),
        (":a", "($1::text)"),
        ("select 'é', :a", "select 'é', ($1::text)"),
        ("select é, :a", "select é, ($1::text)"),
        ("select 1e5:a", "select 1e5($1::text)"),
        ("select json_object('k' : 1)", "select json_object('k' : 1)"),
    ];
    for (sql, expected) in cases {
        assert_eq!(render(sql), expected, "{sql}");
    }
}

#[test]
fn what_only_looks_like_a_placeholder_stays() {
    let cases = [
        "select ':a'",
        "select 'it''s :a'",
        "select ''':a'",
        r"select '\', ':a'",
        r"select E'\':a'",
        r"select e'\\\':a', 1",
        r"select E'a''\':a'",
        "select E'x'\n  '\\':a'",
        "select E'x' -- :b\n  '\\':a'",
        r"select U&'\0041:a'",
        r"select u&':a'",
        r#"select U&"d\0061:a""#,
        "select B'1', X':a', N':a'",
        r#"select ":a""#,
        r#"select "x"":a""#,
        "select $$:a$$",
        "select $$ ' :a $x$ :b $$",
        "select $tag$:a $$ :b$tag$",
        "select $é$:a$é$",
        "select 1 -- :a\n, 2",
        "select 1 -- ' :a\n, 2 -- '\n, 3",
        "select 1 /* :a */",
        "select 1 /* a /* ' :b */ \" :c */, 2",
        "select 1 /*/ :a */, 2",
        "select 1 --/* :a\n, 2",
        "select '/*' , 2 -- */ :a\n, 1",
        "select x::text, y ::int8, z:: bool",
        "select a[1:2]",
        "select a[x:y]",
        "select a[x: y]",
        "select a[: y]",
        "select a[(x):y]",
        "select a[b[1]:c]",
        "select a[f(x):y]",
        "select a[\"x\":y]",
        "select (a)[x:y], a[1][x:y]",
        "select a$b$:: text, c$b$",
        "select f(x := 1, y:=2)",
        "select 1 : 2",
    ];
    for sql in cases {
        let expected = sql.trim_end_matches(" -- :a").trim_end_matches(" /* :a */");
        assert_eq!(render(sql), expected, "{sql}");
        assert_eq!(names(sql), Vec::<String>::new(), "{sql}");
    }
}

#[test]
fn a_string_ends_where_postgresql_ends_it() {
    let cases = [
        (r"select '\', :a", r"select '\', ($1::text)"),
        (r"select E'\\', :a", r"select E'\\', ($1::text)"),
        (r"select U&'\', :a", r"select U&'\', ($1::text)"),
        // Without a newline between them these are two strings: the second has no escapes.
        (r"select E'x' '\', :a", r"select E'x' '\', ($1::text)"),
        (r"select nameE'\', :a", r"select nameE'\', ($1::text)"),
        ("select 'x'\n'y', :a", "select 'x'\n'y', ($1::text)"),
        ("select $x$ $y$ $x$, :a", "select $x$ $y$ $x$, ($1::text)"),
        ("select $x$ $X$ $x$, :a", "select $x$ $X$ $x$, ($1::text)"),
        ("select a$x$, :a, b$x$", "select a$x$, ($1::text), b$x$"),
        ("select 1 /* /* */ :b */ + :a", "select 1 /* /* */ :b */ + ($1::text)"),
        ("select 1 -- x\r, :a", "select 1 -- x\r, ($1::text)"),
        ("select 1 */ :a", "select 1 */ ($1::text)"),
        ("select 4-:a", "select 4-($1::text)"),
    ];
    for (sql, expected) in cases {
        assert_eq!(render(sql), expected, "{sql}");
    }
}

#[test]
fn brackets_decide_between_slices_and_placeholders() {
    let cases = [
        ("select t[:a]", "select t[($1::text)]"),
        ("select t[ :a ]", "select t[ ($1::text) ]"),
        ("select t[:a : :b]", "select t[($1::text) : ($2::text)]"),
        ("select t[1 : :a]", "select t[1 : ($1::text)]"),
        ("select t[x::int:y]", "select t[x::int:y]"),
        ("select t[:a:y]", "select t[($1::text):y]"),
        ("select t[f(:a)]", "select t[f(($1::text))]"),
        ("select t[f(x:y)]", "select t[f(x($1::text))]"),
        ("select t[1 + :a]", "select t[1 + ($1::text)]"),
        ("select array[:a, :b]", "select array[($1::text), ($2::text)]"),
        ("select ARRAY [x,:a]", "select ARRAY [x,($1::text)]"),
        ("select array[[:a],[:b]]", "select array[[($1::text)],[($2::text)]]"),
        ("select array[t[x:y], :a]", "select array[t[x:y], ($1::text)]"),
        ("select :a[1]", "select ($1::text)[1]"),
        ("select :a[1:2]", "select ($1::text)[1:2]"),
        ("select :a[:b]", "select ($1::text)[($2::text)]"),
    ];
    for (sql, expected) in cases {
        assert_eq!(render(sql), expected, "{sql}");
    }
}

#[test]
fn a_report_is_one_statement() {
    let cases = [
        ("select 1;", "select 1"),
        ("select 1 ; \n", "select 1"),
        ("select 1; -- the end", "select 1"),
        ("select 1 /* x */ ; /* y */", "select 1"),
        ("select ';'", "select ';'"),
        ("select 1 -- ;", "select 1"),
        ("/* why */ select 1", "/* why */ select 1"),
        ("select 1;;", "line 1, column 9"),
        ("select 1; select 2", "line 1, column 9"),
        ("select 1\n; drop table x;", "line 2, column 1"),
        ("select (1; 2)", "line 1, column 10"),
        (";", "must not be empty"),
        ("", "must not be empty"),
        (" \n-- nothing\n/* here */", "must not be empty"),
    ];
    for (sql, expected) in cases {
        let rendered = render(sql);
        if rendered.starts_with("error") {
            assert!(rendered.contains(expected), "{sql}: {rendered}");
        } else {
            assert_eq!(rendered, expected, "{sql}");
        }
    }
}

#[test]
fn faults_name_their_place() {
    use SqlErrorKind::{
        Empty, NulCharacter, PlaceholderName, PositionalParameter, SecondStatement, TooLong,
        TooManyNames, Unbalanced, Unterminated,
    };
    let long = "x".repeat(MAX_SQL_BYTES + 1);
    let many: String = (0..=MAX_NAMES).map(|n| format!(",:p{n}")).collect();
    let many = format!("select 1{many}");
    let cases = [
        ("select 'a", Unterminated("string"), Some((1, 8))),
        ("select 'a''", Unterminated("string"), Some((1, 8))),
        (r"select E'a\'", Unterminated("string"), Some((1, 8))),
        ("select E'a\\", Unterminated("string"), Some((1, 8))),
        ("select\n \"a", Unterminated("quoted identifier"), Some((2, 2))),
        ("select $$a$", Unterminated("dollar-quoted string"), Some((1, 8))),
        ("select $a$ $b$", Unterminated("dollar-quoted string"), Some((1, 8))),
        ("select 1\n/* /* */", Unterminated("comment"), Some((2, 1))),
        ("select (1", Unterminated("parenthesis"), Some((1, 8))),
        ("select a[1", Unterminated("square bracket"), Some((1, 9))),
        ("select (a[1)]", Unbalanced(')'), Some((1, 12))),
        ("select 1)", Unbalanced(')'), Some((1, 9))),
        ("select 1]", Unbalanced(']'), Some((1, 9))),
        ("select $1", PositionalParameter, Some((1, 8))),
        ("select 'é', :Name", PlaceholderName, Some((1, 13))),
        ("select :nAme", PlaceholderName, Some((1, 8))),
        ("select :né", PlaceholderName, Some((1, 8))),
        ("select :a$b", PlaceholderName, Some((1, 8))),
        ("select 1; 'a", Unterminated("string"), Some((1, 11))),
        ("select 1; select 2", SecondStatement, Some((1, 9))),
        ("select '\0'", NulCharacter, Some((1, 9))),
        ("--", Empty, None),
        (long.as_str(), TooLong, None),
        (many.as_str(), TooManyNames, Some((1, 500))),
    ];
    for (sql, kind, position) in cases {
        let error = NamedSql::parse(sql).unwrap_err();
        let at = error.position().map(|at| (at.line, at.column));
        assert_eq!((error.kind(), at), (kind, position), "{sql:.40}");
    }
}

#[test]
fn names_come_in_the_order_of_first_use_with_their_places() {
    let named = NamedSql::parse("select :b,\n  :a, :b").unwrap();
    assert_eq!(named.names().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(named.first_use("a"), Some(Position { line: 2, column: 3 }));
    assert_eq!(named.first_use("c"), None);
    let rendered = named.render(|name| if name == "a" { "int4[]" } else { "date" });
    assert_eq!(rendered, "select ($1::date),\n  ($2::int4[]), ($1::date)");
}

/// A piece of SQL and the names of the placeholders in it.
#[derive(Debug, Clone)]
struct Piece {
    sql: String,
    names: Vec<String>,
}

/// Text that tries to get out of whatever it is put in.
fn hostile_text() -> impl Strategy<Value = String> {
    let atoms = vec![
        "'", "''", "\"", "$$", "$x$", "--", "/*", "*/", "\\", ":a", ":b", "::", ";", "\n", " ",
        "é", "E'", "[", ")", "x", "1", ":", "$1",
    ];
    prop::collection::vec(prop::sample::select(atoms), 0..8).prop_map(|atoms| atoms.concat())
}

fn quoted() -> impl Strategy<Value = Piece> {
    let inert = |sql: String| Piece { sql, names: Vec::new() };
    prop_oneof![
        hostile_text().prop_map(move |text| inert(format!("'{}'", text.replace('\'', "''")))),
        hostile_text().prop_map(move |text| {
            inert(format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")))
        }),
        hostile_text().prop_map(move |text| inert(format!("\"{}\"", text.replace('"', "\"\"")))),
        // No atom makes the tag `end`, and none holds it in part.
        hostile_text().prop_map(move |text| inert(format!("$end${text} $end$"))),
        hostile_text().prop_map(move |text| inert(format!("--{}\n", text.replace('\n', " ")))),
        hostile_text().prop_map(move |text| inert(block_comment(&text))),
    ]
}

/// A comment around `text`, in which every comment that opens is closed and no other.
fn block_comment(text: &str) -> String {
    let inner = text.replace('/', "|");
    format!("/* {inner} /* {inner} */ {inner} */")
}

fn piece() -> impl Strategy<Value = Piece> {
    let plain = |sql: &str| Piece { sql: sql.to_owned(), names: Vec::new() };
    prop_oneof![
        quoted(),
        prop::sample::select(vec!["x", "1", "+", "::int4", "a[1:2]", "a[x:y]", "f(1)", "n :="])
            .prop_map(plain),
        "[a-z_][a-z0-9_]{0,4}"
            .prop_map(|name| Piece { sql: format!(":{name}"), names: vec![name] }),
    ]
}

proptest! {
    /// Whatever stands in strings, identifiers and comments stays, in any order and number, and
    /// every placeholder between them is found. Commas keep a string from going on in the next.
    #[test]
    fn placeholders_are_found_between_quotes_and_never_in_them(
        pieces in prop::collection::vec(piece(), 0..12),
    ) {
        let join = |part: fn(&Piece) -> String| {
            pieces.iter().map(part).collect::<Vec<_>>().join(" , ")
        };
        let sql = format!("select {} x", join(|piece| piece.sql.clone()));
        let mut expected_names: Vec<String> = Vec::new();
        for name in pieces.iter().flat_map(|piece| &piece.names) {
            if !expected_names.contains(name) {
                expected_names.push(name.clone());
            }
        }
        let named = NamedSql::parse(&sql).unwrap();
        prop_assert_eq!(named.names().collect::<Vec<_>>(), &expected_names[..]);
        let expected = pieces
            .iter()
            .map(|piece| match piece.names.first() {
                Some(name) => {
                    let index = expected_names.iter().position(|known| known == name).unwrap();
                    format!("(${}::t)", index + 1)
                }
                None => piece.sql.clone(),
            })
            .collect::<Vec<_>>()
            .join(" , ");
        prop_assert_eq!(named.render(|_| "t"), format!("select {expected} x"));
    }

    /// No text is a panic. What is read is the text up to its last token, and every use in it is
    /// a colon with its name.
    #[test]
    fn any_text_is_read_or_refused(sql in prop_oneof![hostile_text(), any::<String>()]) {
        if let Ok(named) = NamedSql::parse(&sql) {
            prop_assert!(sql.starts_with(&named.text));
            for Use { range, name } in &named.uses {
                let expected = format!(":{}", named.names[*name].name);
                prop_assert_eq!(&named.text[range.clone()], expected);
            }
        }
    }
}
