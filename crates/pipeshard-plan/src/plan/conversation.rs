//! The conversation that plans are weighed by where the user describes none.

use crate::constants::conversation::{LONGEST_PROMPT, SHORT_CONTEXT};

/// Tokens of the prompt in a context of so many: three quarters, all of a short one, at most [`LONGEST_PROMPT`].
pub fn usual_prompt(context: u64) -> u32 {
    let share = (context - context / 4).max(context.min(SHORT_CONTEXT));
    let share = u32::try_from(share).unwrap_or(u32::MAX);
    share.clamp(1, LONGEST_PROMPT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_leave_room_for_an_answer() {
        assert_eq!(usual_prompt(4096), 3072);
        assert_eq!(usual_prompt(1 << 40), LONGEST_PROMPT);
        assert_eq!(usual_prompt(0), 1);
    }

    #[test]
    fn a_short_context_is_for_a_prompt_that_fills_it() {
        assert_eq!(usual_prompt(8), 8);
        assert_eq!(usual_prompt(32), 32);
        assert_eq!(usual_prompt(140), 128);
        assert_eq!(usual_prompt(256), 192);
    }
}
