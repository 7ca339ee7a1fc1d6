//! Random configurations, generated from the schemas, for property tests: plausible ones and some that no job would
//! have. Every input must be accepted or refused with an error, without a panic. A newly declared option is generated
//! without a change here.

use nomad_proto::hclspec::Spec;
use nomad_proto::hclspec::spec::Block;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{DriverName, PluginConfig, TaskOptions};

const NAMES: [DriverName; 2] = [DriverName::ContainerdDriver, DriverName::Docker];
/// Strings that decoders treat in special ways.
const WORDS: [&str; 26] = [
    "",
    "a",
    "true",
    "host",
    "private",
    "none",
    "all",
    "0",
    "-1",
    "1k",
    "64m",
    "5s",
    "0:0",
    "1000:1000",
    "/",
    "/a/b",
    "../..",
    "/a/../b",
    "a=b",
    "a:b:c",
    "NET_ADMIN",
    "rbind,ro",
    "size=1",
    "\0",
    "ü\u{202e}",
    "io.containerd.runc.v2",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(&WORDS[..]).prop_map(str::to_owned),
        1 => ".{0,20}",
        1 => "[a-z]{1,8}(=|:|/)[a-z0-9]{0,8}",
    ]
}

/// Generates any value that msgpack can carry, whatever type is expected.
fn anything() -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    let nested = |inner: BoxedStrategy<Value>| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(word(), inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
        .boxed()
    };
    leaf.prop_recursive(3, 16, 4, nested).boxed()
}

/// Generates values of the type that an option is declared with.
fn fitting(spec: &Spec) -> BoxedStrategy<Value> {
    let each = |nested: &Option<Box<Spec>>| nested.as_deref().map_or(anything(), fitting);
    match spec.block.as_ref().expect("a node says something") {
        Block::Object(object) => {
            let among = object.attributes.len();
            let field = |(name, spec): (&String, &Spec)| (Just(name.clone()), given(spec, among));
            let fields: Vec<_> = object.attributes.iter().map(field).collect();
            fields.prop_map(|fields| Value::Object(fields.into_iter().collect())).boxed()
        }
        Block::Attr(attr) => match attr.r#type.as_str() {
            "string" => word().prop_map(Value::from).boxed(),
            "bool" => any::<bool>().prop_map(Value::from).boxed(),
            "number" => {
                prop_oneof![(-2i64..70_000).prop_map(Value::from), any::<i64>().prop_map(Value::from)].boxed()
            }
            "list(string)" => vec(word(), 0..4).prop_map(Value::from).boxed(),
            _ => anything(),
        },
        Block::BlockAttrs(_) => {
            let words = btree_map(word(), word().prop_map(Value::from), 0..4);
            words.prop_map(|map| Value::Object(map.into_iter().collect())).boxed()
        }
        Block::BlockValue(block) => each(&block.nested),
        Block::BlockList(list) => vec(each(&list.nested), 0..3).prop_map(Value::from).boxed(),
        Block::BlockSet(set) => vec(each(&set.nested), 0..3).prop_map(Value::from).boxed(),
        Block::Default(default) => each(&default.primary),
        Block::Array(_) | Block::BlockMap(_) | Block::Literal(_) => anything(),
    }
}

/// Generates a value for one of `among` options, so that an object has a few at a time: most often null, seldom a value
/// that Nomad would not send.
fn given(spec: &Spec, among: usize) -> BoxedStrategy<Value> {
    let none = u32::try_from(3 * among).unwrap();
    prop_oneof![none => Just(Value::Null), 9 => fitting(spec), 1 => anything()].boxed()
}

/// Generates a task configuration that Nomad could send; most of them decode.
pub(crate) fn task() -> impl Strategy<Value = Value> {
    fitting(&TaskOptions::schema()).prop_map(|options| with(&options, "image", json!("redis")))
}

/// Generates a plugin's configuration, with a name under which its driver answers.
fn plugin() -> impl Strategy<Value = (DriverName, Value)> {
    prop::sample::select(&NAMES[..]).prop_flat_map(|name| {
        fitting(&PluginConfig::schema(name)).prop_map(move |options| match name {
            DriverName::ContainerdDriver => {
                (name, with(&options, "containerd_runtime", json!("io.containerd.runc.v2")))
            }
            DriverName::Docker => (name, options),
        })
    })
}

fn with(options: &Value, name: &str, value: Value) -> Value {
    let mut options: Map<_, _> = options.as_object().cloned().unwrap_or_default();
    options.insert(name.to_owned(), value);
    Value::Object(options)
}

/// Encodes a valid value and changes, inserts or truncates some of its bytes.
fn mutated(valid: impl Strategy<Value = Value>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..6);
    (valid, changes).prop_map(|(value, changes)| {
        let mut bytes = rmp_serde::to_vec_named(&value).unwrap();
        for (at, what, byte) in changes {
            let at = at.index(bytes.len().max(1));
            match what {
                _ if bytes.is_empty() => bytes.push(byte),
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => bytes.truncate(at),
            }
        }
        bytes
    })
}

/// Decodes the bytes as a task's and as the plugin's configuration; a refusal must have a text.
fn decode_all(bytes: &[u8]) {
    let decoded = |name| {
        let plugin = PluginConfig::decode(name, bytes).err().map(|error| error.to_string());
        [TaskOptions::decode(name, bytes).err().map(|error| error.to_string()), plugin]
    };
    for error in NAMES.into_iter().flat_map(decoded).flatten() {
        assert!(!error.is_empty());
    }
}

proptest! {
    #[test]
    fn random_bytes_are_decoded_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }

    #[test]
    fn mutated_options_are_decoded_or_refused(task in mutated(task()), plugin in mutated(plugin().prop_map(|(_, options)| options))) {
        decode_all(&task);
        decode_all(&plugin);
    }

    #[test]
    fn random_options_are_decoded_or_refused_by_name(task in task(), (name, plugin) in plugin()) {
        let encoded = |value: &Value| rmp_serde::to_vec_named(value).unwrap();
        let (decoded, operators) = (TaskOptions::decode(name, &encoded(&task)), PluginConfig::decode(name, &encoded(&plugin)));
        if let (Ok(task), Ok(Some(plugin))) = (&decoded, &operators) {
            let _ = task.permitted_by(plugin);
        }
        for (error, schema) in [(decoded.err(), TaskOptions::schema()), (operators.err(), PluginConfig::schema(name))] {
            let Some(Block::Object(object)) = schema.block else { panic!("a schema is an object") };
            let text = error.map(|error| error.to_string());
            let named = |text: &str| {
                text.contains("can't be decoded") || object.attributes.keys().any(|name| text.contains(name.as_str()))
            };
            prop_assert!(text.as_deref().is_none_or(named), "no option is named in {text:?}");
        }
    }
}

#[test]
fn announced_depth_and_length_are_bounded() {
    for head in
        [&[0x91][..], &[0x81, 0xa1, b'a'], &[0xdd, 0xff, 0xff, 0xff, 0xff], &[0xdf, 0xff, 0xff, 0xff, 0xff]]
    {
        decode_all(&head.repeat(10_000));
        let in_an_option = [&[0x81, 0xa4][..], b"args", &head.repeat(10_000)].concat();
        decode_all(&in_an_option);
    }
}
