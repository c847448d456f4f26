//! Pictures and sounds, made here.

/// Numbers from 0 to 255 without a pattern.
fn noise() -> impl Iterator<Item = u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
}

/// A picture of noise, as a bitmap.
pub fn bitmap(width: u32, height: u32) -> Vec<u8> {
    let row = (width * 3).next_multiple_of(4);
    let mut file = b"BM".to_vec();
    let size = row * height;
    let header = [
        54 + size,
        0,
        54,
        40,
        width,
        height,
        24 << 16 | 1,
        0,
        size,
        0,
        0,
        0,
        0,
    ];
    file.extend(header.iter().flat_map(|number| number.to_le_bytes()));
    file.extend(noise().take(size as usize));
    file
}

/// A rising tone with noise, one channel at 16 kHz, as a wave file.
pub fn wave(seconds: u32) -> Vec<u8> {
    const RATE: u32 = 16_000;
    let samples = seconds * RATE;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + 2 * samples).to_le_bytes());
    file.extend(b"WAVEfmt ");
    // a header of 16 bytes: whole numbers, one channel, 16 bits
    for number in [16, 1 << 16 | 1, RATE, 2 * RATE, 16 << 16 | 2] {
        file.extend(number.to_le_bytes());
    }
    file.extend(b"data");
    file.extend((2 * samples).to_le_bytes());
    let hiss = noise().map(|byte| f32::from(byte) / 256.0 - 0.5);
    let values = (0..samples).zip(hiss).map(|(sample, hiss)| {
        let time = sample as f32 / RATE as f32;
        let tone = ((200.0 + 300.0 * time) * time * std::f32::consts::TAU).sin();
        ((0.5 * tone + 0.2 * hiss) * 20_000.0) as i16
    });
    file.extend(values.flat_map(i16::to_le_bytes));
    file
}
