//! `bind MODULE FOLDER NAME`: writes FOLDER/NAME.js and FOLDER/NAME_bg.wasm from a module that cargo has compiled.
//!
//! The same as `wasm-bindgen --target web --no-typescript --remove-name-section`, without what compiling that program takes.

use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder, name] = &arguments[..] else {
        anyhow::bail!("expected MODULE FOLDER NAME, found {arguments:?}");
    };
    let mut bindgen = Bindgen::new();
    bindgen.web(true)?.input_path(module).out_name(name).typescript(false).remove_name_section(true);
    bindgen.generate(folder)
}
