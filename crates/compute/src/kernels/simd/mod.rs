//! Sixteen float32 lanes on whatever vector instructions this CPU has, chosen once at run time.
//!
//! A kernel is written once over [`Simd`] and compiled for each instruction set. Every operation here rounds the same
//! way on all of them (multiply-add is always fused), so a kernel gives the same bits everywhere.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx;
#[cfg(all(test, target_arch = "x86_64", target_os = "linux"))]
mod amx_emulated;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod amx_integers;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod bf16;
pub(crate) mod integers;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod vnni;

use std::{mem::MaybeUninit, sync::OnceLock};

/// Lanes of a vector, and outputs of a panel.
pub(crate) const LANES: usize = 16;

/// Sixteen float32 or int32 lanes. A value of an implementing type is proof that the CPU has its instructions.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen float32.
    type F: Copy;
    /// Sixteen int32.
    type I: Copy;
    /// Rows of a register tile of two panels, at most 12: as many as leave registers for the weights.
    const TILE_ROWS: usize;
    /// Running sums that stay in registers while weights are widened beside them.
    const SUMS: usize;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// Reads sixteen floats.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Writes sixteen floats.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Writes sixteen lanes where nothing was yet.
    #[inline(always)]
    fn store_new(self, x: Self::F, to: &mut [MaybeUninit<f32>; LANES]) {
        *to = self.to_array(x).map(MaybeUninit::new);
    }
    /// Widens sixteen IEEE halves, exactly.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// Widens sixteen bfloat16, exactly.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b`: a NaN in `b` stays, one in `a` does not.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`: a NaN in `b` stays, one in `a` does not.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;

    /// Widens sixteen signed bytes.
    fn load_i8(self, from: &[i8; LANES]) -> Self::I;
    /// Widens sixteen unsigned bytes.
    fn load_u8(self, from: &[u8; LANES]) -> Self::I;
    /// Widens sixteen signed words.
    fn load_i16(self, from: &[i16; LANES]) -> Self::I;
    /// Reads sixteen times four bytes.
    fn load_bytes(self, from: &[[u8; 4]; LANES]) -> Self::I;
    /// `x` in every lane.
    fn splat_i32(self, x: i32) -> Self::I;
    /// `x - y` of each byte, wrapping.
    fn sub_bytes(self, x: Self::I, y: u8) -> Self::I;
    /// `sum` and the products of each lane's four signed bytes with `x`, none of which is -128.
    fn dot_bytes(self, sum: Self::I, weights: Self::I, x: [i8; 4]) -> Self::I;
    /// `sum` and the products of each lane's two signed words with `x`, wrapping.
    fn dot_words(self, sum: Self::I, words: Self::I, x: [i16; 2]) -> Self::I;
    /// `sum` and the products of each lane's pair of bfloat16 with the pair `x`: first that of the high halves, then that of
    /// the low ones, each a fused multiply-add. An instruction takes numbers below 2^-126 for zero, which others do not.
    #[inline(always)]
    fn dot_pairs(self, sum: Self::F, pairs: Self::I, x: u32) -> Self::F {
        two_links(self, sum, pairs, x)
    }
    /// Pairs of floats that are bfloat16 already, of which `first` becomes the high halves.
    #[inline(always)]
    fn pair(self, first: Self::F, second: Self::F) -> Self::I {
        self.or(self.as_integers(first), self.shr::<16>(self.as_integers(second)))
    }
    /// Pairs of bfloat16, of which `first` becomes the high halves.
    #[inline(always)]
    fn pair_words(self, first: &[u16; LANES], second: &[u16; LANES]) -> Self::I {
        self.pair(self.load_bf16(first), self.load_bf16(second))
    }
    /// Of each four floats that are bfloat16 already, pairs of the first and the third, and of the second and the fourth, in
    /// the places of the first two; what is in the others' has no meaning.
    #[inline(always)]
    fn pairs_of_fours(self, x: Self::F) -> Self::I {
        let lanes = self.to_array(x);
        self.pair(x, self.load(&std::array::from_fn(|lane| lanes[(lane + 2) % LANES])))
    }
    /// `x & mask`.
    fn and(self, x: Self::I, mask: i32) -> Self::I;
    /// `a | b`.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// `x + y`, wrapping.
    fn add_i32(self, x: Self::I, y: i32) -> Self::I;
    /// `a + b`, wrapping.
    fn add_integers(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a * b`, wrapping.
    fn mul_integers(self, a: Self::I, b: Self::I) -> Self::I;
    /// The larger of each lane of `largest`, without a sign, and the bits of the magnitude of `x`.
    fn max_magnitude(self, largest: Self::I, x: Self::F) -> Self::I;
    /// `x << N`.
    fn shl<const N: u32>(self, x: Self::I) -> Self::I;
    /// `x >> N`, zeros shifted in.
    fn shr<const N: u32>(self, x: Self::I) -> Self::I;
    /// To the nearest float.
    fn to_f32(self, x: Self::I) -> Self::F;
    /// The same bits as floats.
    fn as_floats(self, x: Self::I) -> Self::F;
    /// The same bits as integers.
    fn as_integers(self, x: Self::F) -> Self::I;

    /// Asks for the cache line at an address, which need not be valid, to be brought near.
    fn prefetch_line(self, address: *const u8);

    /// The same, into the second-level cache.
    fn prefetch_far_line(self, address: *const u8);

    /// Asks for a value, which need not be there, to be brought into the second-level cache: the first level cannot wait for
    /// as many lines at once as keep memory busy.
    #[inline(always)]
    fn prefetch_far<T>(self, value: *const T) {
        for offset in (0..size_of::<T>()).step_by(64) {
            self.prefetch_far_line(value.cast::<u8>().wrapping_add(offset));
        }
    }

    /// The vector of zeros.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// The nearest bfloat16, ties to even; a NaN is not kept.
    #[inline(always)]
    fn round_bf16(self, x: Self::F) -> Self::F {
        let bits = self.as_integers(x);
        let odd = self.and(self.shr::<16>(bits), 1);
        let rounded = self.add_integers(self.add_i32(bits, 0x7fff), odd);
        self.as_floats(self.and(rounded, -0x1_0000))
    }

    /// The nearest bfloat16, ties to even; a NaN stays one, whatever its lower half.
    #[inline(always)]
    fn round_bf16_or_nan(self, x: Self::F) -> Self::F {
        // Infinity, or NaN where `x` is.
        let most = self.fma(x, x, self.splat(f32::INFINITY));
        self.min(self.round_bf16(x), most)
    }

    /// Reads up to sixteen floats; the lanes past the end of `from` are `fill`.
    #[inline(always)]
    fn load_partial(self, from: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; LANES];
        for (lane, &x) in lanes.iter_mut().zip(from) {
            *lane = x;
        }
        self.load(&lanes)
    }

    /// Writes the first `to.len()` lanes, at most sixteen.
    #[inline(always)]
    fn store_partial(self, x: Self::F, to: &mut [f32]) {
        let lanes = self.to_array(x);
        for (to, lane) in to.iter_mut().zip(lanes) {
            *to = lane;
        }
    }

    /// The lanes.
    #[inline(always)]
    fn to_array(self, x: Self::F) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        lanes
    }

    /// The sum of the lanes, halves added to halves.
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        let mut lanes = self.to_array(x);
        for half in [8, 4, 2, 1] {
            for k in 0..half {
                lanes[k] += lanes[k + half];
            }
        }
        lanes[0]
    }

    /// The largest lane, without a sign.
    #[inline(always)]
    fn largest_lane(self, x: Self::I) -> u32 {
        self.to_integers(x).into_iter().fold(0, |largest, lane| largest.max(lane as u32))
    }

    /// The lanes.
    #[inline(always)]
    fn to_integers(self, x: Self::I) -> [i32; LANES] {
        self.to_array(self.as_floats(x)).map(|lane| lane.to_bits() as i32)
    }

    /// Writes sixteen times four bytes.
    #[inline(always)]
    fn store_bytes(self, x: Self::I, to: &mut [[u8; 4]; LANES]) {
        *to = self.to_integers(x).map(i32::to_le_bytes);
    }

    /// The low byte of each lane.
    #[inline(always)]
    fn store_low_bytes(self, x: Self::I, to: &mut [i8; LANES]) {
        *to = self.to_integers(x).map(|lane| lane as i8);
    }

    /// The largest lane.
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        self.to_array(x).into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }

    /// `e^x` to about one unit in the last place; arguments below -87 count as -87, those above 88 as 88.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        // 1/k! for k = 7 ... 0.
        const TAYLOR: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
        let x = self.min(self.splat(88.0), self.max(self.splat(-87.0), x));
        let shifted = self.fma(x, self.splat(std::f32::consts::LOG2_E), self.splat(ROUND));
        let n = self.sub(shifted, self.splat(ROUND));
        let r = self.fma(n, self.splat(-LN2_HIGH), x);
        let r = self.fma(n, self.splat(-LN2_LOW), r);
        let mut p = self.splat(TAYLOR[0]);
        for c in &TAYLOR[1..] {
            p = self.fma(p, r, self.splat(*c));
        }
        let power = self.as_floats(self.add_i32(self.shl::<23>(self.as_integers(shifted)), 0x3f80_0000));
        self.mul(p, power)
    }

    /// `e^x` within `2^-14` of itself, for `x` up to 0; arguments below -60 count as -60, so that products with what it
    /// gives stay normal numbers.
    #[inline(always)]
    fn exp_coarse(self, x: Self::F) -> Self::F {
        const ROUND: f32 = 12_582_912.0;
        const LN2: f32 = std::f32::consts::LN_2;
        // ln(2)^k/k! for k = 4 ... 0.
        const TAYLOR: [f32; 5] = [LN2 * LN2 * LN2 * LN2 / 24.0, LN2 * LN2 * LN2 / 6.0, LN2 * LN2 / 2.0, LN2, 1.0];
        let x = self.max(self.splat(-60.0), x);
        let log2e = self.splat(std::f32::consts::LOG2_E);
        let shifted = self.fma(x, log2e, self.splat(ROUND));
        let r = self.fma(x, log2e, self.sub(self.splat(ROUND), shifted));
        let mut p = self.splat(TAYLOR[0]);
        for c in &TAYLOR[1..] {
            p = self.fma(p, r, self.splat(*c));
        }
        let power = self.as_floats(self.add_i32(self.shl::<23>(self.as_integers(shifted)), 0x3f80_0000));
        self.mul(p, power)
    }
}

/// [`Simd::dot_pairs`] by two multiply-adds.
#[inline(always)]
fn two_links<S: Simd>(simd: S, sum: S::F, pairs: S::I, x: u32) -> S::F {
    let [first, second] = [x & 0xffff_0000, x << 16].map(f32::from_bits);
    let sum = simd.fma(simd.splat(first), simd.as_floats(simd.and(pairs, -0x1_0000)), sum);
    simd.fma(simd.splat(second), simd.as_floats(simd.shl::<16>(pairs)), sum)
}

/// Work that is compiled once for each instruction set.
pub(crate) trait Kernel {
    /// What it gives back.
    type Output;
    /// Does it. Implementations and all functions that they hand vectors to are `#[inline(always)]`, or the wider
    /// instructions do not reach them; closures cannot be, so vectors stay out of those.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

static BEST: OnceLock<Level> = OnceLock::new();

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Level {
    /// What the compiler's target guarantees.
    Scalar(scalar::Scalar),
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// AVX-512 F, BW, DQ and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// Those, and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(vnni::Vnni),
    /// Those, and products of pairs of bfloat16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(bf16::Bf16),
    /// Those, and tiles of bfloat16 and of bytes.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(amx::Amx),
}

impl Level {
    /// The one that was [chosen](Self::choose), or else the fastest; the same as long as the process runs.
    pub(crate) fn best() -> Self {
        let fastest = || Self::available().into_iter().rfind(|level| level.pays());
        *BEST.get_or_init(|| fastest().unwrap_or(Self::Scalar(scalar::Scalar)))
    }

    /// Whether it is faster here than what is narrower.
    fn pays(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(bf16) => bf16.pays(),
            _ => true,
        }
    }

    /// Makes this the [`best`](Self::best) one, if no other is in use.
    pub(crate) fn choose(self) -> bool {
        BEST.get_or_init(|| self).name() == self.name()
    }

    /// All of them, narrowest first.
    pub(crate) fn available() -> Vec<Self> {
        let wider: [Option<Self>; _] = [
            #[cfg(target_arch = "x86_64")]
            avx2::Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            avx512::Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            vnni::Vnni::detect().map(Self::Avx512Vnni),
            #[cfg(target_arch = "x86_64")]
            bf16::Bf16::detect().map(Self::Avx512Bf16),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            amx::Amx::detect().map(Self::Amx),
        ];
        std::iter::once(Self::Scalar(scalar::Scalar)).chain(wider.into_iter().flatten()).collect()
    }

    /// All of them and, where the CPU has the vectors for it, tiles that are emulated: what tests run kernels with.
    #[cfg(test)]
    pub(crate) fn tested() -> Vec<Self> {
        let mut levels = Self::available();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if !levels.iter().any(|level| matches!(level, Self::Amx(_))) {
            levels.extend(amx::Amx::emulated().map(Self::Amx));
        }
        levels
    }

    /// Runs a kernel with these instructions, as a function of its own: a kernel that runs others through this is not
    /// compiled with a copy of each.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(vnni) => vnni.avx512().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(bf16) => bf16.avx512().run(kernel),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(amx) => amx.avx512().run(kernel),
        }
    }

    /// Its name, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Scalar(_) => "baseline",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "AVX-512 and VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => "AVX-512 and BF16",
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx(_) => "AVX-512 and AMX",
        }
    }

    /// [`Simd::SUMS`].
    pub(crate) fn sums(self) -> usize {
        self.constants().1
    }

    /// [`Simd::TILE_ROWS`].
    pub(crate) fn tile_rows(self) -> usize {
        self.constants().0
    }

    fn constants(self) -> (usize, usize) {
        struct Constants;
        impl Kernel for Constants {
            type Output = (usize, usize);
            #[inline(always)]
            fn run<S: Simd>(self, _: S) -> (usize, usize) {
                (S::TILE_ROWS, S::SUMS)
            }
        }
        self.run(Constants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything([f32; LANES], [u16; LANES], [u8; LANES]);

    impl Kernel for Everything {
        type Output = Vec<[u32; LANES]>;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Output {
            let Self(x, h, b) = self;
            let v = s.load(&x);
            let half = s.load_f16(&h);
            let bytes = s.load_u8(&b);
            let signed = s.load_i8(&b.map(|x| x as i8));
            [
                s.exp(v),
                s.exp_coarse(v),
                half,
                s.load_bf16(&h),
                s.fma(v, s.splat(1.1), half),
                s.div(s.splat(1.0), s.add(v, s.splat(0.3))),
                s.max(v, s.sub(half, v)),
                s.min(v, s.mul(half, v)),
                s.to_f32(s.or(s.and(bytes, 0xf), s.shl::<4>(s.shr::<6>(bytes)))),
                s.to_f32(s.add_i32(signed, -32)),
                s.splat(s.sum(v)),
                s.splat(s.max_lane(v)),
                s.round_bf16(v),
                s.round_bf16_or_nan(half),
                s.to_f32(s.add_integers(bytes, signed)),
                s.to_f32(s.mul_integers(s.as_integers(v), signed)),
                s.splat(s.largest_lane(s.max_magnitude(s.as_integers(s.mul(v, v)), half)) as f32),
                s.to_f32(s.load_i16(&h.map(|x| x as i16))),
                s.to_f32(s.dot_bytes(
                    bytes,
                    s.sub_bytes(s.as_integers(v), 77),
                    [b[0], b[1], b[2], b[3]].map(|x| (x as i8).max(-127)),
                )),
                s.to_f32(s.dot_words(signed, s.as_integers(half), [x[0] as i16 * 1000, x[1] as i16])),
                s.dot_pairs(v, s.pair(s.load_bf16(&h), s.round_bf16(v)), u32::from_be_bytes([0x3f, b[0], 0xbf, b[1]])),
                s.as_floats(s.shr::<3>(s.load_bytes(&b.map(|x| [x, !x, x / 3, x & 0x1f])))),
            ]
            .map(|x| s.to_array(x).map(f32::to_bits))
            .to_vec()
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for _ in 0..1000 {
            let x: [f32; LANES] = std::array::from_fn(|_| rng.random_range(-20.0..20.0));
            let halves: [u16; LANES] =
                std::array::from_fn(|_| rng.random_range(0..0x7c00) | (rng.random_range(0..2) << 15));
            let bytes: [u8; LANES] = std::array::from_fn(|_| rng.random());
            let mut results = Level::tested().into_iter().map(|level| level.run(Everything(x, halves, bytes)));
            let first = results.next();
            for other in results {
                assert_eq!(Some(other), first, "x = {x:?}, halves = {halves:?}");
            }
        }
    }

    struct Exp(f32);

    impl Kernel for Exp {
        type Output = f32;

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> f32 {
            s.to_array(s.exp(s.splat(self.0)))[0]
        }
    }

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        for k in -87_000..88_000 {
            let x = k as f32 / 1000.0;
            let (got, want) = (f64::from(Level::best().run(Exp(x))), f64::from(x).exp());
            assert!(((got - want) / want).abs() < 2.4e-7, "e^{x}: {got} != {want}");
        }
        assert_eq!(Level::best().run(Exp(0.0)), 1.0);
        assert!(Level::best().run(Exp(f32::NEG_INFINITY)) < 1e-37);
        assert!(Level::best().run(Exp(f32::INFINITY)).is_finite());
        assert!(Level::best().run(Exp(f32::NAN)).is_nan());
    }

    #[test]
    fn the_coarse_exponential_is_as_near_as_it_says() {
        struct Coarse(f32);
        impl Kernel for Coarse {
            type Output = f32;
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> f32 {
                s.to_array(s.exp_coarse(s.splat(self.0)))[0]
            }
        }
        for k in -60_000..=0 {
            let x = k as f32 / 1000.0;
            let (got, want) = (f64::from(Level::best().run(Coarse(x))), f64::from(x).exp());
            assert!(((got - want) / want).abs() < 2f64.powi(-14), "e^{x}: {got} != {want}");
        }
        assert_eq!(Level::best().run(Coarse(0.0)), 1.0);
        assert!(Level::best().run(Coarse(f32::NEG_INFINITY)) < 1e-25);
        assert!(Level::best().run(Coarse(f32::NAN)).is_nan());
    }

    #[test]
    fn every_half_is_widened_exactly() {
        struct Widen([u16; LANES]);
        impl Kernel for Widen {
            type Output = [f32; LANES];
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> [f32; LANES] {
                s.to_array(s.load_f16(&self.0))
            }
        }
        for level in Level::tested() {
            for bits in 0..=u16::MAX {
                let got = level.run(Widen([bits; LANES]))[3];
                let want = half::f16::from_bits(bits).to_f32();
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:04x} on {level:?}");
            }
        }
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest_bfloat16_and_nan_stays_nan() {
        struct Round(f32);
        impl Kernel for Round {
            type Output = f32;
            #[inline(always)]
            fn run<S: Simd>(self, s: S) -> f32 {
                s.to_array(s.round_bf16_or_nan(s.splat(self.0)))[0]
            }
        }
        let corners = [0, 1, 0x7f7f_7fff, 0x7f7f_8000, 0x7f7f_ffff, 0x7f80_0000, 0x7f80_0001, 0x7fc0_0000, 0x7fff_ffff];
        let others = (0..0x7f80_0000).step_by(0x1_2345);
        for bits in corners.into_iter().chain(others).flat_map(|bits| [bits, bits | 1 << 31]) {
            let want = half::bf16::from_f32(f32::from_bits(bits)).to_f32();
            for level in Level::tested() {
                let got = level.run(Round(f32::from_bits(bits)));
                assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:08x} on {level:?}");
            }
        }
    }
}
