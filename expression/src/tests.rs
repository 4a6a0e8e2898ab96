//! The language as users know it, and the bounds.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use weft_proto::ids::EventId;

use crate::*;

mod json;

fn attributes() -> Attributes<'static> {
    Attributes {
        event_id: EventId::of_delivery("shop", "evt_1"),
        sequence_number: 7,
        workflow_id: "order-42",
        previous_event_id: None,
        event_type: "order.paid",
        source: "shop",
        time: "2026-11-21T02:00:00.123Z".parse().unwrap(),
        received_at: "2026-11-21T02:00:00.140Z".parse().unwrap(),
        delivery_id: Some("evt_1"),
    }
}

fn input(data: &str) -> Input<'static> {
    let data = data.to_owned();
    Input::new(attributes(), move || Data::Json(Bytes::from(data)))
}

const ORDER: &str = r#"{"id":"o-1","total":120,"price":12.5,"big":18446744073709551615,"paid":true,"note":null,
    "items":[{"sku":"a","count":2},{"sku":"b","count":1}],"tags":["new","vip"],"at":"2026-11-20T23:30:00Z","empty":[]}"#;

/// The result as JSON text, or the error.
fn result(text: &str, data: &str) -> Result<String, String> {
    let expression = Expression::compile(text).map_err(|error| format!("compile {error}"))?;
    let json = expression.transform(&input(data)).map_err(|error| error.to_string())?;
    Ok(String::from_utf8(json.to_vec()).unwrap())
}

#[track_caller]
fn gives(text: &str, expected: &str) {
    assert_eq!(result(text, ORDER), Ok(expected.to_owned()), "{text}");
}

#[track_caller]
fn fails(text: &str, expected: &str) {
    assert_eq!(result(text, ORDER), Err(expected.to_owned()), "{text}");
}

#[test]
fn members_and_their_absence() {
    gives("data.total", "120");
    gives("data['total']", "120");
    gives("data.items[1].sku", "\"b\"");
    gives("has(data.total) && !has(data.missing)", "true");
    gives("has(data.note) && data.note == null", "true");
    gives("'total' in data && !('missing' in data)", "true");
    fails("data.missing", "1:5: no such member: missing");
    fails("data.missing.deeper", "1:5: no such member: missing");
    fails("data['missing']", "1:5: no such key");
    fails("data.total.deeper", "1:11: int has no member deeper");
    fails("has(data.total.deeper)", "1:4: int has no member deeper");
    fails("data.items[2]", "1:11: the index is outside of a list of 2");
    fails("data.items[-1]", "1:11: the index is outside of a list of 2");
    gives("data.items[1.0].sku", "\"b\"");
}

/// An error on one side of `&&` or `||` does not count where the other side decides.
#[test]
fn logical_operators_absorb_errors_where_the_other_side_decides() {
    gives("data.missing > 1 && false", "false");
    gives("false && data.missing > 1", "false");
    gives("data.missing > 1 || true", "true");
    fails("data.missing > 1 && true", "1:5: no such member: missing");
    fails("data.missing > 1 || false", "1:5: no such member: missing");
    gives("data.missing && false", "false");
    fails("data.total && true", "1:5: && takes bools, not int");
    gives("true ? 1 : data.missing", "1");
    gives("[1, 'a'].all(x, x > 0) || true", "true");
    gives("['a', -1].all(x, x > 0)", "false");
    gives("['a', 1].exists(x, x > 0)", "true");
    fails("['a', 1].all(x, x > 0)", "1:19: > does not take (string, int)");
    fails("!data.total", "1:1: ! does not take (int)");
    fails("data.total ? 1 : 2", "1:12: the condition of ? is a bool, not int");
}

#[test]
fn numbers_are_compared_and_calculated_by_their_values() {
    gives("1 == 1.0 && 1u == 1 && 1.0 == 1u && 1 != 2u", "true");
    gives("data.total > 100 && data.price < 13 && data.price > 12", "true");
    gives("data.big > 9223372036854775807 && data.big > 1e19 && data.big < 1.9e19", "true");
    gives("9007199254740993 > 9007199254740992.0", "true");
    gives("-1 < 0u && -1 < 18446744073709551615u", "true");
    gives("0.0/0.0 == 0.0/0.0 || 1 < 0.0/0.0", "false");
    gives("[7 / 2, -7 / 2, 7 % 3, -7 % 3]", "[3,-3,1,-1]");
    gives("[data.total * 100, data.price * 100, 100 * data.price, data.total + 1u]", "[12000,1250.0,1250.0,121]");
    gives("[data.big, data.big - 1, 7u - 2u]", "[18446744073709551615,18446744073709551614,5]");
    gives("[1.5, 1.0, 1e21, 1e-7, 0.1 + 0.2]", "[1.5,1.0,1e21,1e-7,0.30000000000000004]");
    gives("9223372036854775807 == 9223372036854775807", "true");
    gives("-9223372036854775808", "-9223372036854775808");
    fails("9223372036854775807 + 1", "1:21: the result of + is out of range");
    fails("-(-9223372036854775808)", "1:1: integer overflow");
    fails("1u - 2u", "1:4: the result of - is out of range");
    fails("data.big + data.big", "1:10: the result of + is out of range");
    fails("1 / 0", "1:3: division by zero");
    fails("1 % 0", "1:3: division by zero");
    fails("1.0 / 0.0", "1:5: the result has a number that is not finite, which JSON cannot hold");
    fails("1.5 % 1.0", "1:5: % does not take (double, double)");
    fails("data.id * 2", "1:9: * does not take (string, int)");
    assert!(Expression::compile("9223372036854775808").is_err());
}

#[test]
fn values_of_different_types_are_not_equal() {
    gives("data.total == '120'", "false");
    gives("data.note == 0 || data.note == false || data.note == ''", "false");
    gives("[1, 2.0] == [1.0, 2] && {'a': 1} == {'a': 1u} && {'a': 1} != {'b': 1}", "true");
    gives("{1: 'x'}[1u] + {1: 'x'}[1.0]", "\"xx\"");
    gives("1u in {1: 2} && 1.0 in [1] && !('1' in [1])", "true");
    gives("null == null && type(null) == null_type && type(1) == int && type(data) == map", "true");
    fails("'a' < 1", "1:5: < does not take (string, int)");
    gives("'a' < 'b' && b'a' < b'b' && false < true && 'Z' < 'a'", "true");
    fails("[1] < [2]", "1:5: < does not take (list, list)");
}

#[test]
fn texts() {
    gives("data.id.startsWith('o-') && data.id.endsWith('1') && data.id.contains('-')", "true");
    gives("data.id.matches('^o-[0-9]+$') && matches(data.id, 'O-') == false && data.id.matches('(?i)O-')", "true");
    gives("size('é😀') + 'é😀'.size() + size(b'é') + size([1, 2]) + size({'a': 1})", "9");
    gives("'a' + 'b' + string(1) + string(1.0) + string(2u) + string(true)", "\"ab112true\"");
    gives("'  Ab '.trim().lowerAscii() + 'x'.upperAscii()", "\"abX\"");
    gives("'a,b,c'.split(',') + ['a-b'.replace('-', '+')]", "[\"a\",\"b\",\"c\",\"a+b\"]");
    gives("['a', 'b'].join('-') + ['c'].join()", "\"a-bc\"");
    gives(
        "['hello'.substring(1), 'hello'.substring(1, 3), 'é€x'.substring(1, 2), 'a'.substring(1)]",
        "[\"ello\",\"el\",\"€\",\"\"]",
    );
    fails("'a'.substring(2)", "1:14: substring: the text is shorter than that");
    gives("'a\\n\\u00e9\\'' + r'\\d' + \"\"\"x\"y\"\"\"", "\"a\\né'\\\\dx\\\"y\"");
    gives("bytes('é') == b'é' && string(b'abc') == 'abc'", "true");
    gives("b'abc'", "\"YWJj\"");
    fails("string(b'\\xff')", "1:7: string: the bytes are not UTF-8");
    fails("data.total.startsWith('1')", "1:22: startsWith does not take (int, string)");
    fails("data.total.matches('1')", "1:19: matches does not take (int)");
}

#[test]
fn conversions() {
    gives("[int('12'), int(12.9), int(-12.9), int(12u)]", "[12,12,-12,12]");
    gives("[uint('12'), uint(12), uint(12.9), uint('18446744073709551615')]", "[12,12,12,18446744073709551615]");
    gives("[double('1.5'), double(1), double(2u)]", "[1.5,1.0,2.0]");
    gives("[bool('true'), bool('0'), dyn(1) == 1]", "[true,false,true]");
    fails("int('x')", "1:4: int: the text is not an int");
    fails("int(1e19)", "1:4: int: the value is out of range");
    fails("uint(-1)", "1:5: uint: the value is out of range");
    fails("int([1])", "1:4: int does not take (list)");
}

#[test]
fn lists_and_macros() {
    gives("data.items.map(i, i.sku)", "[\"a\",\"b\"]");
    gives("data.items.map(i, i.count > 1, i.sku)", "[\"a\"]");
    gives("data.items.filter(i, i.count > 1)", "[{\"sku\":\"a\",\"count\":2}]");
    gives("data.items.all(i, i.count > 0) && data.items.exists(i, i.sku == 'b')", "true");
    gives("data.items.exists_one(i, i.count == 1) && !data.items.exists_one(i, i.count > 0)", "true");
    gives("data.empty.all(x, false) && !data.empty.exists(x, true)", "true");
    gives("data.items.map(i, data.tags.map(t, t + i.sku))", "[[\"newa\",\"vipa\"],[\"newb\",\"vipb\"]]");
    gives("data.items.map(i, data.tags.map(i, i))", "[[\"new\",\"vip\"],[\"new\",\"vip\"]]");
    gives("{'b': 1, 'a': 2}.map(k, k)", "[\"b\",\"a\"]");
    gives("{'b': 1, 'a': 2}.filter(k, k != 'b')", "[\"a\"]");
    gives("'vip' in data.tags && !('x' in data.tags)", "true");
    gives("[[1, 2], [3]].exists(l, l.exists(x, x == 3))", "true");
    gives("[1, 2].map(event, event + 1)", "[2,3]");
    fails("data.total.all(x, true)", "1:15: int is neither a list nor a map");
    fails("{'a': 1, 'a': 2}", "1:10: the key is repeated");
    fails("{1.5: 1}", "1:2: a key is a string, an int, a uint or a bool, not double");
}

#[test]
fn times() {
    gives("event.time > timestamp('2026-11-21T00:00:00Z') && event.time < event.receivedAt", "true");
    gives("event.receivedAt - event.time", "\"0.017s\"");
    gives("event.receivedAt - event.time < duration('20ms')", "true");
    gives("timestamp(data.at) + duration('1h30m')", "\"2026-11-21T01:00:00Z\"");
    gives("timestamp(data.at).getHours() + timestamp(data.at).getHours('+01:00')", "23");
    gives(
        "[event.time.getFullYear(), event.time.getMonth(), event.time.getDate(), event.time.getDayOfMonth()]",
        "[2026,10,21,20]",
    );
    gives("[event.time.getDayOfWeek(), event.time.getDayOfYear(), event.time.getMilliseconds()]", "[6,324,123]");
    gives("int(timestamp(1000)) + int(timestamp('1970-01-01T00:00:01Z'))", "1001");
    gives("string(duration('1.5h')) + string(duration('-250ms')) + string(duration('1m1s'))", "\"5400s-0.25s61s\"");
    gives("duration('90m').getHours() + duration('90m').getMinutes()", "91");
    fails("timestamp('yesterday')", "1:10: timestamp: the text is not an RFC 3339 time");
    fails("duration('1 day')", "1:9: duration: the text is not a duration such as 1h30m or 1.5s");
    fails("event.time.getHours('Europe/Berlin')", "1:20: getHours: a time zone is UTC or an offset such as +01:00");
    fails("event.time + event.time", "1:12: + does not take (google.protobuf.Timestamp, google.protobuf.Timestamp)");
    fails("timestamp('9999-12-30T00:00:00Z') + duration('9999999h')", "1:35: the result of + is out of range");
}

#[test]
fn the_attributes_of_an_event() {
    gives("event.type == 'order.paid' && event.source == 'shop' && event.workflowId == 'order-42'", "true");
    gives("event.sequenceNumber + 1", "8");
    gives("event.previousEventId == null && !has(event.previousEventId) && has(event.deliveryId)", "true");
    gives("event['type'] + event.deliveryId", "\"order.paidevt_1\"");
    gives(
        "event",
        "{\"eventId\":\"adc8ac26-5f51-590c-a093-d32f0b5c22c7\",\"sequenceNumber\":7,\"workflowId\":\"order-42\",\
         \"previousEventId\":null,\"type\":\"order.paid\",\"source\":\"shop\",\"time\":\"2026-11-21T02:00:00.123Z\",\
         \"receivedAt\":\"2026-11-21T02:00:00.14Z\",\"deliveryId\":\"evt_1\"}",
    );
}

/// The example of the contract.
#[test]
fn a_transform_keeps_the_order_of_members() {
    gives(
        "{'id': data.id, 'cents': data.total * 100, 'b': 1, 'a': data.items}",
        "{\"id\":\"o-1\",\"cents\":12000,\"b\":1,\"a\":[{\"sku\":\"a\",\"count\":2},{\"sku\":\"b\",\"count\":1}]}",
    );
    fails("{'a': int}", "1:1: the result has a type, which JSON cannot hold");
}

#[test]
fn data_that_is_not_json_is_bytes() {
    let expression = Expression::compile("type(data) == bytes && string(data) == 'abc' && size(data) == 3").unwrap();
    let of = |data: Data| expression.filter(&Input::new(attributes(), move || data));
    assert_eq!(of(Data::Bytes(Bytes::from_static(b"abc"))), Ok(true));
    assert_eq!(of(Data::None), Ok(false));
    let null = Expression::compile("data == null").unwrap();
    assert_eq!(null.filter(&Input::new(attributes(), || Data::None)), Ok(true));
}

#[test]
fn the_result_of_a_filter_is_a_bool() {
    let of = |text: &str| Expression::compile(text).unwrap().filter(&input(ORDER));
    assert_eq!((of("data.total > 100"), of("data.total > 120")), (Ok(true), Ok(false)));
    assert_eq!(of("data.total").unwrap_err().to_string(), "1:5: the result of a filter is a bool, not int");
    assert!(!of("event.type == 'x' &&\n  data.missing").unwrap());
    assert_eq!(of("event.type != 'x' &&\n  data.missing").unwrap_err().to_string(), "2:7: no such member: missing");
}

#[test]
fn a_text_that_is_no_expression_is_refused_with_its_position() {
    let of = |text: &str| Expression::compile(text).unwrap_err().to_string();
    assert_eq!(of(" "), "1:1: the expression is empty");
    assert_eq!(of("total > 100"), "1:1: unknown name total; there are event and data");
    assert_eq!(of("data.total >\n foo(1)"), "2:5: unknown function foo");
    assert_eq!(of("startsWith(data, 'a')"), "1:11: startsWith is called as x.startsWith(…)");
    assert_eq!(of("data.int()"), "1:9: int is called as int(…)");
    assert_eq!(of("data.startsWith()"), "1:16: startsWith does not take 0 arguments");
    assert!(
        of("event.typ == 'a'").starts_with("1:6: event has no typ; it has eventId, "),
        "{}",
        of("event.typ == 'a'")
    );
    assert_eq!(of("data.a.matches(data.b)"), "1:15: the pattern of matches is a literal text");
    assert_eq!(of("data.a.matches('(')"), "1:16: pattern: unclosed group");
    assert_eq!(
        of("data.a.matches('(a{1000}){1000}')"),
        "1:16: the pattern is too large; use fewer repetitions or classes"
    );
    assert_eq!(of("Foo{a: 1}"), "1:4: Foo: there are no messages");
    assert!(of("data.total >").starts_with("1:13: "), "{}", of("data.total >"));
    assert!(of("data.total = 1").starts_with("1:12: "), "{}", of("data.total = 1"));
    assert!(of("'é' + §").starts_with("1:7: "), "{}", of("'é' + §"));
    assert!(of(&"x".repeat(EXPRESSION_BYTES_MAX + 1)).contains("more than 4096 bytes"));
    for deep in ["(", "[", "a?a:", "f(", "{1:", "-(", "!(", "a[", "a.map(a,"] {
        assert!(Expression::compile(&deep.repeat(400)).is_err(), "{deep}");
    }
    let nested = format!("{}data{}", "(".repeat(100), ")".repeat(100));
    assert_eq!(of(&nested), "1:50: the expression is nested more than 48 deep");
    let chain = format!("data{}", ".a".repeat(1000));
    assert!(of(&chain).ends_with("nested more than 96 deep"), "{}", of(&chain));
    // A long list of conditions is not deep.
    let conditions = vec!["data.total > 1"; 200].join(" && ");
    assert!(Expression::compile(&conditions).unwrap().filter(&input(ORDER)).unwrap());
}

fn numbers(count: usize) -> String {
    format!("{{\"list\":[{}]}}", vec!["1"; count].join(","))
}

/// A comparison for each element of a long list is affordable, one for each pair is not, and ends the evaluation.
#[test]
fn the_cost_of_an_evaluation_is_bounded() {
    let list = numbers(10_000);
    assert_eq!(result("data.list.all(x, x > 0)", &list), Ok("true".into()));
    let limit = |text: &str, data: &str| {
        let error = result(text, data).unwrap_err();
        assert!(error.ends_with("steps for this event") || error.ends_with("bytes of values of this event"), "{error}");
    };
    limit("data.list.all(x, data.list.all(y, x == y))", &list);
    limit("data.list.map(x, data.list)  == data.list.map(x, data.list)", &list);
    // Nothing absorbs the end.
    limit("data.list.exists(x, data.list.all(y, x == y) && false) || true", &list);
    limit("true || false ? data.list.map(x, data.list.map(y, [x, y])) : []", &list);
    let text = format!("{{\"text\":\"{}\"}}", "a".repeat(1 << 20));
    let doubled = vec!["data.text"; 40].join(" + ");
    limit(&format!("size({doubled})"), &text);
    limit("data.text.matches('^[a-z]+(b|c)$') && data.text.matches('(a|aa)+$')", &text);
    limit("data.text.split('')", &text);
    limit("data.text.replace('a', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbb')", &text);
    let shared = format!("[{}]", vec!["data"; 400].join(","));
    let error = result(&shared, &text).unwrap_err();
    assert!(error.ends_with("the result is longer than 8388608 bytes"), "{error}");
}

/// All who hold an expression hold the same one.
#[test]
fn an_expression_is_compiled_once() {
    let one = Expression::shared("data.shared == 1").unwrap();
    assert!(Arc::ptr_eq(&one, &Expression::shared("data.shared == 1").unwrap()));
    assert!(!Arc::ptr_eq(&one, &Expression::shared("data.shared == 2").unwrap()));
    assert_eq!(one.text(), "data.shared == 1");
}

const OPERATORS: &[&str] = &["+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", "in"];
const FUNCTIONS: &[&str] =
    &["size", "int", "uint", "double", "string", "bytes", "type", "timestamp", "duration", "bool"];
const MACROS: &[&str] = &["all", "exists", "exists_one", "map", "filter"];
const METHODS: &[&str] = &["contains", "startsWith", "split", "join", "substring", "getHours"];

/// Parts of expressions, joined at random.
fn part() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("data".to_owned()),
        Just("data.items".to_owned()),
        Just("data.tags".to_owned()),
        Just("data.total".to_owned()),
        Just("data.missing".to_owned()),
        Just("event.time".to_owned()),
        Just("event.source".to_owned()),
        Just("event".to_owned()),
        Just("x".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("double('{number:?}')")),
        "[a-c0-9]{0,3}".prop_map(|text| format!("'{text}'")),
        Just("duration('1s')".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            (two.clone(), proptest::sample::select(OPERATORS)).prop_map(|((a, b), o)| format!("({a} {o} {b})")),
            (inner.clone(), proptest::sample::select(FUNCTIONS)).prop_map(|(a, f)| format!("{f}({a})")),
            (two.clone(), proptest::sample::select(MACROS)).prop_map(|((a, b), m)| format!("{a}.{m}(x, {b})")),
            (two.clone(), proptest::sample::select(METHODS)).prop_map(|((a, b), m)| format!("{a}.{m}({b})")),
            two.clone().prop_map(|(a, b)| format!("[{a}, {b}]")),
            two.clone().prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            two.clone().prop_map(|(a, b)| format!("{a}[{b}]")),
            two.prop_map(|(a, b)| format!("({a} ? {b} : [{a}])")),
            inner.prop_map(|a| format!("has({a}.sku)")),
        ]
    })
}

proptest! {
    /// Any text is refused or compiled, and any expression is evaluated, without a panic and to the same result each time;
    /// a result is JSON.
    #[test]
    fn any_expression_has_a_result_or_an_error(text in part()) {
        let text = format!("[1, 'a', data.items].map(x, {text})");
        let Ok(expression) = Expression::compile(&text) else { return Ok(()) };
        let (first, second) = (expression.transform(&input(ORDER)), expression.transform(&input(ORDER)));
        prop_assert_eq!(&first, &second);
        if let Ok(json) = first {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&json).is_ok(), "{}", text);
        }
        let _ = expression.filter(&input(ORDER));
    }

    #[test]
    fn any_text_is_an_expression_or_refused(text in "[ -~é\n]{0,60}") {
        if let Err(error) = Expression::compile(&text) {
            prop_assert!(error.line >= 1 && error.column >= 1);
            prop_assert!(!error.message.contains('\n') && !error.message.is_empty());
        }
    }
}

/// P4: what a sender can put into an event costs what it takes. A look-up hashes its whole key, so a long one in a loop cost
/// minutes and no steps.
#[test]
fn long_keys_and_numbers_cost_what_they_take() {
    let items = vec!["{\"price\":1}"; 20_000].join(",");
    let data = format!(r#"{{"items":[{items}],"limits":{{"a":1}},"currency":"{}"}}"#, "x".repeat(900_000));
    let started = std::time::Instant::now();
    for text in [
        "data.items.exists(i, data.currency in data.limits)",
        "data.items.all(i, data.currency == 'x' || !(data.currency in data.limits))",
        "data.items.map(i, event)",
    ] {
        let failed = result(text, &data).unwrap_err();
        assert!(
            failed.contains("the expression needs more than") || failed.contains("makes more than"),
            "{text}: {failed}"
        );
    }
    let failed = result("double(data.currency)", &data).unwrap_err();
    assert!(failed.contains("too long for a number"), "{failed}");
    assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}", started.elapsed());
}
