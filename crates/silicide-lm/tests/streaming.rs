//! Streams of ids and of text: any cut into pieces gives the whole.

use std::path::Path;

use proptest::prelude::*;
use silicide_lm::{StopSequences, Tokenizer};

const KINDS: [&str; 4] = ["byte_level", "split_bytes", "byte_fallback", "metaspace"];

fn tokenizer(kind: &str) -> Tokenizer {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/vectors/tokenizers");
    Tokenizer::from_folder(root.join(kind)).expect("a small tokenizer")
}

fn stream(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Vec<String> {
    let mut stream = tokenizer.stream(skip_special);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).to_string()).collect();
    pieces.push(stream.finish().to_string());
    pieces
}

#[test]
fn pieces_join_to_the_text_of_all_bytes() {
    for kind in KINDS {
        let tokenizer = tokenizer(kind);
        let size = tokenizer.vocab_size() as u32;
        proptest!(ProptestConfig::with_cases(500), |(ids in prop::collection::vec(0..size + 3, 0..24), skip: bool)| {
            let pieces = stream(&tokenizer, &ids, skip);
            prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids, skip));
            if kind != "metaspace" {
                // Written apart from the code under test: the bytes of all tokens, then one lossy decoding.
                let shown = ids.iter().filter(|&&id| !(skip && tokenizer.is_special(id)));
                let bytes: Vec<u8> = shown.flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().to_vec()).collect();
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let text = if kind == "byte_fallback" { text.strip_prefix(' ').unwrap_or(&text).to_string() } else { text };
                prop_assert_eq!(pieces.concat(), text);
            }
        });
    }
}

#[test]
fn text_comes_in_whole_characters() {
    let text = "Zürich 你好 👨‍👩‍👧‍👦 नमस्ते";
    for kind in ["byte_level", "split_bytes", "byte_fallback"] {
        let tokenizer = tokenizer(kind);
        let ids = tokenizer.encode(text, false).expect("ids");
        let pieces = stream(&tokenizer, &ids, false);
        assert_eq!(pieces.concat(), text, "{kind}");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{kind}: {pieces:?}");
        assert!(pieces.iter().any(String::is_empty), "{kind}: no character of {text:?} took several tokens");
    }
}

#[test]
fn half_a_character_comes_out_at_the_end_only() {
    let tokenizer = tokenizer("byte_level");
    let ids = tokenizer.encode("a🙃", false).expect("ids");
    let (cut, last) = ids.split_at(ids.len() - 1);
    assert!(!last.is_empty() && tokenizer.token_bytes(last[0]).is_some_and(|bytes| bytes.len() < 4));
    let pieces = stream(&tokenizer, cut, false);
    assert_eq!(pieces[0], "a");
    assert!(pieces[1..cut.len()].iter().all(String::is_empty));
    assert_eq!(pieces[cut.len()], "\u{FFFD}");
}

#[test]
fn a_finished_stream_is_as_new() {
    let tokenizer = tokenizer("byte_fallback");
    let ids = tokenizer.encode("The fox", false).expect("ids");
    let mut stream = tokenizer.stream(true);
    for _ in 0..2 {
        let mut text: String = ids.iter().map(|&id| stream.push(id).to_string()).collect();
        text.push_str(stream.finish());
        assert_eq!(text, "The fox");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Against the plain definition: the text up to the first stop string in it.
    #[test]
    fn stop_strings_end_the_text_wherever_it_is_cut(
        pieces in prop::collection::vec("[abé]{0,4}", 0..8),
        stops in prop::collection::vec("[abé]{1,4}", 0..3),
    ) {
        let text = pieces.concat();
        let end = stops.iter().filter_map(|stop| text.find(stop.as_str())).min();
        let mut stream = StopSequences::new(stops.clone()).expect("stops").stream();
        let mut out = String::new();
        let mut stopped = false;
        for piece in &pieces {
            stopped = stream.push(piece, &mut out);
            prop_assert!(stops.iter().all(|stop| !out.contains(stop.as_str())));
            if stopped {
                break;
            }
        }
        stopped |= stream.finish(&mut out);
        prop_assert_eq!(stopped, end.is_some());
        prop_assert_eq!(out, &text[..end.unwrap_or(text.len())]);
    }
}

#[test]
fn text_that_begins_no_stop_string_is_not_held_back() {
    let mut stream = StopSequences::new(["</s>", "\n\n"]).expect("stops").stream();
    let mut out = String::new();
    assert!(!stream.push("a < b </", &mut out));
    assert_eq!(out, "a < b ");
    assert!(!stream.push("p>\n", &mut out));
    assert_eq!(out, "a < b </p>");
    assert!(stream.push("\nrest", &mut out));
    assert!(stream.push("more", &mut out));
    assert!(stream.finish(&mut out));
    assert_eq!(out, "a < b </p>");
    assert!(StopSequences::new([""]).is_err());
}
