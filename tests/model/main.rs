//! The namespace behaves as POSIX: random operations on it and on a reference that anyone can
//! read give the same replies, attributes, listings and bytes.

mod gather;
mod journal;
mod listing;
mod mounted;
mod ops;
mod reference;
mod rules;
mod sessions;
mod world;

use mictlan::id::{Ino, SessionId};
use mictlan::meta::namespace::{Op, plan};
use ops::{Alphabet, histories};
use proptest::prelude::*;
use reference::Model;
use world::{apply, assert_covered, compare, env, founded, refused, root, seconds};

fn random(len: usize) -> impl Strategy<Value = Vec<Op>> {
    histories(Alphabet::of_session(1), Ino::of(SessionId(1), 1), len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_namespace_behaves_like_the_model(ops in random(60)) {
        let mut map = founded();
        let mut model = Model::founded(root(&map));
        for (i, op) in ops.iter().enumerate() {
            let now = seconds(1_000 + i as i64);
            let planned = plan(&map, &env(now), op).map_err(refused);
            let reply = planned.as_ref().map(|p| p.reply.clone()).map_err(|e| *e);
            prop_assert_eq!(reply, model.step(now, op), "step {}: {:?}", i, op);
            if let Ok(planned) = planned {
                assert_covered(&planned, 1);
                apply(&mut map, &planned.writes);
            }
            compare(&map, &model);
        }
    }

    #[test]
    fn an_operation_survives_the_journal(ops in random(20)) {
        for op in ops {
            let bytes = op.encode();
            prop_assert_eq!(Op::decode(&bytes), Ok(op));
            for len in 0..bytes.len() {
                prop_assert!(Op::decode(&bytes[..len]).is_err());
            }
            let longer = [&bytes[..], &[0]].concat();
            prop_assert!(Op::decode(&longer).is_err());
        }
    }
}
