//! What the runtime says to people who run llama.cpp's tools, in the words of a program that uses this library: it has members of
//! structs where the tools have flags.

use std::borrow::Cow;

/// What the tools call it, and what it is here. The longer ones come first.
const WORDS: &[(&str, &str)] = &[
    (
        ", or leave the encoder to the CPU with --no-mmproj-offload, which takes longer",
        "",
    ),
    (", and use --no-mmproj-offload until then", ""),
    ("raise that to --pipeshard-vram ", "raise that to "),
    (" with --image-max-tokens ", " with image_max_tokens "),
    ("--image-max-tokens ", "image_max_tokens "),
    (" (--mmproj)", " (mmproj)"),
    (" (--no-mmproj-offload)", ""),
    (" (-ub)", " (ubatch)"),
    (" (-c)", " (context)"),
    (" and what -ot puts on the device", ""),
    (", or set PIPESHARD_ANY_DEVICE=1 to try it anyway", ""),
    (", or leave out --pipeshard", ""),
    ("; leave out --pipeshard", ""),
    ("lower --pipeshard-vram", "lower the budget"),
    ("--pipeshard-vram", "the budget"),
    ("is not used with --pipeshard", "is not used"),
    ("(--profile FILE)", "(profile)"),
];

/// The same in the words of programs.
pub fn for_programs(text: &str) -> Cow<'_, str> {
    let mut said = Cow::Borrowed(text);
    for (flag, word) in WORDS {
        if said.contains(flag) {
            said = Cow::Owned(said.replace(flag, word));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_of_members_and_not_of_flags() {
        for (of_tools, of_programs) in [
            (
                "lower what is needed by a smaller micro-batch (-ub) or a shorter context (-c)",
                "lower what is needed by a smaller micro-batch (ubatch) or a shorter context (context)",
            ),
            (
                "raise that to --pipeshard-vram 1300M (1363148800 bytes), limit images with --image-max-tokens 2273, or leave the encoder \
                 to the CPU with --no-mmproj-offload, which takes longer",
                "raise that to 1300M (1363148800 bytes), limit images with image_max_tokens 2273",
            ),
            (
                "raise that to --pipeshard-vram 1300M (1363148800 bytes), or leave the encoder to the CPU with --no-mmproj-offload, which \
                 takes longer",
                "raise that to 1300M (1363148800 bytes)",
            ),
            ("free some, or lower --pipeshard-vram", "free some, or lower the budget"),
            ("nothing to do with it", "nothing to do with it"),
        ] {
            assert_eq!(for_programs(of_tools), of_programs);
        }
    }
}
