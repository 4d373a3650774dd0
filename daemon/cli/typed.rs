//! What somebody types: the code of an invite, and JSON for a record.
//!
//! Owns: that a secret need not be an argument, which every user of the machine can see; and the
//! refusal of a key that stands twice in one object, at any depth: of its values readers would each
//! take another, and a record is evidence.

use super::error::CliError;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{BufRead, IsTerminal, Read};
use zeroize::Zeroizing;

/// A code is shorter by far; whatever else is on standard input is not read to its end.
const CODE_BYTES_MAX: u64 = 4 << 10;

/// The code as it was typed, asked for, or read: whoever sees it before it is used is the newcomer.
pub fn code(typed: Option<&str>) -> Result<Zeroizing<String>, CliError> {
    if let Some(typed) = typed.filter(|typed| *typed != "-") {
        return Ok(Zeroizing::new(typed.to_owned()));
    }
    let input = std::io::stdin();
    let said = match input.is_terminal() {
        true => rpassword::prompt_password("code of the invite (it is not shown): "),
        false => {
            let mut line = String::new();
            input.lock().take(CODE_BYTES_MAX).read_line(&mut line).map(|_| line)
        }
    };
    let unread = |why: &dyn std::fmt::Display| {
        CliError::Usage(format!(
            "no code of an invite could be read: {why}; nothing was changed; its owner prints one: \
             mictlan invite"
        ))
    };
    let said = Zeroizing::new(said.map_err(|error| unread(&error))?);
    match said.trim() {
        "" => Err(unread(&"the line is empty")),
        code => Ok(Zeroizing::new(code.to_owned())),
    }
}

/// The value of a text, if no object in it has a key twice.
pub fn json(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Once>(text).map(|once| once.0)
}

struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Any).map(Once)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("any JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Once(value))) = entries.next_entry::<String, Once>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!("the key {key:?} stands twice")));
            }
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_what_serde_reads_but_for_a_key_that_stands_twice() {
        for text in ["null", "true", "-1", "1", "1.5", r#""a""#, r#"[1,{"a":[{}]}]"#, "{", "1 2"] {
            let plain = serde_json::from_str::<Value>(text).map_err(|error| error.to_string());
            assert_eq!(json(text).map_err(|error| error.to_string()), plain, "{text}");
        }
        for text in [r#"{"a":1,"a":2}"#, r#"{"b":[{"a":1,"c":3,"\u0061":1}]}"#] {
            let refused = json(text).expect_err("one of them would be dropped").to_string();
            assert!(refused.starts_with(r#"the key "a" stands twice at line 1"#), "{refused}");
        }
    }
}
