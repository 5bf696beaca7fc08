//! What GPU kernels share: headers without entry points, and the declarations that Rust and kernels agree on.

use std::fmt::Write;

/// The headers a kernel may `#include`, by name.
const HEADERS: &[(&str, &str)] = &[
    ("attention.h", include_str!("attention.h")),
    ("code_tiles.h", include_str!("code_tiles.h")),
    ("codes.h", include_str!("codes.h")),
    ("delta.h", include_str!("delta.h")),
    ("experts.h", include_str!("experts.h")),
    ("gate.h", include_str!("gate.h")),
    ("hadamard.h", include_str!("hadamard.h")),
    ("math.h", include_str!("math.h")),
    ("matrix.h", include_str!("matrix.h")),
    ("matrix_ggml.h", include_str!("matrix_ggml.h")),
    ("matrix_mlx.h", include_str!("matrix_mlx.h")),
    ("nvidia.h", include_str!("nvidia.h")),
    ("nvidia_emulated.h", include_str!("nvidia_emulated.h")),
    ("order.h", include_str!("order.h")),
    ("packed.h", include_str!("packed.h")),
    ("packet.h", include_str!("packet.h")),
    ("parts.h", include_str!("parts.h")),
    ("product.h", include_str!("product.h")),
    ("products.h", include_str!("products.h")),
    ("quantized_attention.h", include_str!("quantized_attention.h")),
    ("ring.h", include_str!("ring.h")),
    ("rope.h", include_str!("rope.h")),
    ("rows.h", include_str!("rows.h")),
    ("runs.h", include_str!("runs.h")),
    ("seen.h", include_str!("seen.h")),
    ("silicide.h", include_str!("silicide.h")),
    ("stages.h", include_str!("stages.h")),
    ("sums.h", include_str!("sums.h")),
    ("walk.h", include_str!("walk.h")),
];

/// The Metal Shading Language source of an op: one file, every entry point of the op.
pub(crate) struct KernelSource {
    /// The op's name, or the path of the file where it is not the op's `kernel.metal`; unique among sources.
    pub(crate) name: &'static str,
    /// The declaration of each parameter struct, from [`KernelParams::DECLARATION`].
    pub(crate) params: &'static [&'static str],
    /// The text of the file.
    pub(crate) body: &'static str,
}

impl KernelSource {
    /// The whole translation unit: parameter structs first, headers in place of their `#include` lines.
    ///
    /// `newLibraryWithSource` has no include path, so the text must stand alone.
    pub(crate) fn assemble(&self, defines: &str) -> String {
        let mut text = format!("#include <metal_stdlib>\nusing namespace metal;\n{defines}\n");
        for declaration in self.params {
            writeln!(text, "{declaration}").expect("writing to a string");
        }
        writeln!(text, "#line 1 \"{}\"", self.path()).expect("writing to a string");
        let mut included = Vec::new();
        expand(self.body, &self.path(), &mut included, &mut text);
        text
    }

    /// Whether it is written for NVIDIA GPUs alone.
    pub(crate) fn is_for_nvidia(&self) -> bool {
        self.name.ends_with(".cu")
    }

    /// The file, as messages call it.
    pub(crate) fn path(&self) -> String {
        if self.name.contains('/') { self.name.into() } else { format!("{}/kernel.metal", self.name) }
    }
}

fn expand(body: &str, name: &str, included: &mut Vec<&'static str>, text: &mut String) {
    for (number, line) in body.lines().enumerate() {
        let header = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        let Some(header) = header else {
            text.push_str(line);
            text.push('\n');
            continue;
        };
        let (header, body) =
            HEADERS.iter().find(|(h, _)| *h == header).unwrap_or_else(|| panic!("{name} includes unknown {header}"));
        if !included.contains(header) {
            included.push(header);
            writeln!(text, "#line 1 \"{header}\"").expect("writing to a string");
            expand(body, header, included, text);
        }
        writeln!(text, "#line {} \"{name}\"", number + 2).expect("writing to a string");
    }
}

/// A parameter struct that kernels receive inline; made by [`kernel_params!`].
pub(crate) trait KernelParams: bytemuck::Pod {
    /// The struct as Metal Shading Language declares it.
    const DECLARATION: &'static str;
}

/// Declares a parameter struct once, for Rust and for kernels.
///
/// Fields are `u32`, `i32`, `f32`, `u64`, `i64`, arrays of them, or structs declared in the same way; 64-bit fields come
/// first so that nothing is padded (padding does not compile).
macro_rules! kernel_params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident: $ty:tt),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($(#[$doc])* pub(crate) $field: $ty),* }

        impl $crate::kernels::KernelParams for $name {
            const DECLARATION: &'static str = concat!(
                "struct ", stringify!($name), " { ",
                $($crate::kernels::kernel_params!(@field $field $ty), " ",)*
                "};"
            );
        }
    };
    (@field $field:ident [$ty:tt; $n:tt]) => {
        concat!($crate::kernels::kernel_params!(@type $ty), " ", stringify!($field), "[", stringify!($n), "];")
    };
    (@field $field:ident $ty:tt) => {
        concat!($crate::kernels::kernel_params!(@type $ty), " ", stringify!($field), ";")
    };
    (@type u32) => { "uint" };
    (@type i32) => { "int" };
    (@type f32) => { "float" };
    (@type u64) => { "ulong" };
    (@type i64) => { "long" };
    (@type $other:ident) => { stringify!($other) };
}
pub(crate) use kernel_params;

/// Declares an enum of functions once, for Rust and for kernels: variants may carry parameters in Rust; kernels see an
/// `enum class` of their codes.
macro_rules! kernel_enum {
    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident $({ $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? })?),* $(,)?
    }) => {
        $(#[$meta])*
        $vis enum $name { $($(#[$doc])* $variant $({ $($(#[$field_doc])* $field: $ty),* })?),* }

        impl $name {
            pub(crate) const DECLARATION: &'static str =
                concat!("enum class ", stringify!($name), " : uint { ", $(stringify!($variant), ", ",)* "};");

            /// As kernels call them.
            #[allow(dead_code, reason = "for sources that are compiled for each function")]
            pub(crate) const NAMES: &[&str] = &[$(stringify!($variant)),*];

            /// The line with which the host names it to a source that has one function.
            #[allow(dead_code, reason = "for sources that are compiled for each function")]
            pub(crate) fn define(&self) -> String {
                format!("\n#define FUNCTION {}", Self::NAMES[self.code() as usize])
            }

            /// What stands for it in a parameter struct.
            pub(crate) fn code(&self) -> u32 {
                enum Code { $($variant),* }
                match self { $(Self::$variant { .. } => Code::$variant as u32),* }
            }
        }
    };
}
pub(crate) use kernel_enum;
