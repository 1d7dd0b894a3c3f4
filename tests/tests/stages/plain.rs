//! The door for devices, from its other side: a second device in plain loops of f64. It shares nothing with the
//! processor's, so the forward passes, loading and sessions need nothing but `Device`; and it says what every operation
//! means. Its results are the goldens of PyTorch.

use crate::decoder::{Ready, prompt, text};
use crate::golden::{Files, Golden, VARIANTS, assert_close, header, load};
use crate::whole::{QUESTION, Record, greedy, picture};
use llama3med::device::attention::Heads;
use llama3med::device::linear::{Linear, LinearSum};
use llama3med::device::ops::Activation;
use llama3med::device::quant::dequantize;
use llama3med::device::ranks::{Alone, block_on};
use llama3med::device::rope::Pairs;
use llama3med::device::{Builder, Cache, Device, Input};
use llama3med::file::gguf::Dtype;
use llama3med::file::manifest::{DECODER, ENCODER};
use llama3med::model::ModelLoader;
use llama3med::model::connector::Connector;
use llama3med::model::encoder::Encoder;
use llama3med::model::session::{Chat, Session};
use llama3med::spec::VisionSpec;
use llama3med::{Error, Result};
use std::ops::Range;

struct Plain;

/// Rows of numbers.
#[derive(Default, Clone)]
struct Table {
    width: usize,
    values: Vec<f64>,
}

impl Table {
    fn of(width: usize, values: impl IntoIterator<Item = f64>) -> Self {
        Self { width, values: values.into_iter().collect() }
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f64> {
        self.values.chunks_exact(self.width)
    }

    /// The same width, each row made from one of these.
    fn map(&self, make: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        Self::of(self.width, self.rows().flat_map(make))
    }

    /// Every value with its column, changed.
    fn change(&mut self, change: impl Fn(usize, usize, f64) -> f64) {
        let width = self.width;
        self.values.iter_mut().enumerate().for_each(|(idx, x)| *x = change(idx / width, idx % width, *x));
    }
}

/// Stored rows that arrive.
struct Arriving {
    dtype: Dtype,
    n_rows: usize,
    n_cols: usize,
    cols: Range<usize>,
    bytes: Vec<u8>,
}

impl Builder for Arriving {
    type Matrix = Table;

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn finish(self, name: &str) -> Result<Table> {
        if self.bytes.len() != self.n_rows * self.dtype.row_bytes(self.n_cols) {
            return Err(Error::corrupt("test", name, "bytes are missing"));
        }
        let mut rows = vec![0.0; self.n_rows * self.n_cols];
        dequantize(self.dtype, &self.bytes, &mut rows);
        let own = rows.chunks_exact(self.n_cols).flat_map(|row| &row[self.cols.clone()]);
        Ok(Table::of(self.cols.len(), own.map(|&x| x.into())))
    }
}

/// For each layer, the keys and values of every position.
#[derive(Clone)]
struct Past(Vec<[Table; 2]>);

impl Cache for Past {
    type Pages = ();

    fn fork(&self, n_positions: usize) -> Self {
        let mut fork = self.clone();
        let tables = fork.0.as_flattened_mut().iter_mut();
        tables.for_each(|table| table.values.truncate(n_positions * table.width));
        fork
    }

    fn has_room(&self, _: usize, _: usize) -> bool {
        true
    }

    fn new_pages(&self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn take(&mut self, _: (), end: usize) {
        self.0.as_flattened_mut().iter_mut().for_each(|table| table.values.truncate(end * table.width));
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn mean(x: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    x.iter().map(|&x| of(x)).sum::<f64>() / x.len() as f64
}

/// The error function by its Taylor series, which in f64 is precise enough up to 4; beyond, 1 is.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut total) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        total += term / (2 * n + 1) as f64;
    }
    total * 2.0 / std::f64::consts::PI.sqrt()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Query i sees `n_seen(i)` of the keys.
fn attention(q: &Table, [k, v]: [&Table; 2], heads: &Heads, n_seen: impl Fn(usize) -> usize) -> Table {
    let dim = heads.head_dim;
    let mut out = Vec::new();
    for (query, q) in q.rows().enumerate() {
        for (q, kv_head) in q.chunks_exact(dim).zip(&heads.kv_head) {
            let own = kv_head * dim..(kv_head + 1) * dim;
            let scores: Vec<f64> =
                k.rows().take(n_seen(query)).map(|k| dot(q, &k[own.clone()]) / (dim as f64).sqrt()).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            let column = |col| v.rows().zip(&weights).map(move |(v, weight)| weight * v[col]).sum::<f64>() / total;
            out.extend(own.map(column));
        }
    }
    Table::of(q.width, out)
}

impl Device for Plain {
    type Peers = Alone;
    type Buffer = Table;
    type Matrix = Table;
    type Builder = Arriving;
    type Cache = Past;

    fn peers(&self) -> &Alone {
        &Alone
    }

    fn builder(&self, dtype: Dtype, n_rows: usize, n_cols: usize, cols: Range<usize>) -> Result<Arriving> {
        Ok(Arriving { dtype, n_rows, n_cols, cols, bytes: Vec::new() })
    }

    fn cache(&self, n_layers: usize, heads: &Heads, _: bool) -> Past {
        let table = Table::of(heads.n_kv_heads * heads.head_dim, []);
        Past(vec![[table.clone(), table]; n_layers])
    }

    fn spare(&self, _: usize, _: &str) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, values: Vec<f32>, n_rows: usize, out: &mut Table) {
        *out = Table::of(values.len() / n_rows.max(1), values.iter().map(|&x| x.into()));
    }

    fn n_rows(&self, x: &Table) -> usize {
        x.rows().len()
    }

    async fn download(&mut self, x: &Table) -> Result<Vec<f32>> {
        Ok(x.values.iter().map(|&x| x as f32).collect())
    }

    async fn gather(&mut self, x: &Table, all: &mut Vec<f32>) -> Result<()> {
        all.extend(self.download(x).await?);
        Ok(())
    }

    fn copy(&mut self, x: &Table, rows: Range<usize>, out: &mut Table, at: usize) {
        let before = out.values.iter().take(at * x.width);
        *out = Table::of(x.width, before.chain(&x.values[rows.start * x.width..rows.end * x.width]).copied());
    }

    async fn embed(
        &mut self,
        table: &Linear<Self>,
        first_id: usize,
        inputs: &[Input<'_, Table>],
        out: &mut Table,
    ) -> Result<()> {
        let rows = inputs.iter().flat_map(|input| match input {
            Input::Token(id) => table.weight.rows().nth(*id as usize - first_id).unwrap(),
            Input::Image(image, row) => image.rows().nth(*row).unwrap(),
        });
        *out = Table::of(table.weight.width, rows.copied());
        Ok(())
    }

    fn linear<const N: usize>(&mut self, layers: [&Linear<Self>; N], x: &Table, outs: [&mut Table; N]) {
        for (Linear { weight, bias }, out) in layers.into_iter().zip(outs) {
            let products = x.rows().flat_map(|x| weight.rows().map(|row| dot(x, row)));
            *out = Table::of(weight.rows().len(), products);
            if let Some(bias) = bias {
                out.change(|_, col, x| x + bias.values[col]);
            }
        }
    }

    async fn linear_sum(&mut self, layer: &LinearSum<Self>, x: &Table, out: &mut Table) -> Result<()> {
        // Parts may be empty.
        let parts = || layer.parts.iter().filter(|part| part.width > 0);
        let (mut first, n_outputs) = (layer.first, parts().next().map_or(0, |part| part.rows().len()));
        *out = Table::of(n_outputs, vec![0.0; x.rows().len() * n_outputs]);
        for part in parts() {
            let own = x.rows().map(|x| &x[first..first + part.width]);
            let products: Vec<f64> = own.flat_map(|x| part.rows().map(|row| dot(x, row))).collect();
            out.values.iter_mut().zip(products).for_each(|(out, product)| *out += product);
            first += part.width;
        }
        if let Some(bias) = &layer.bias {
            out.change(|_, col, x| x + bias.values[col]);
        }
        Ok(())
    }

    fn rms_norm(&mut self, x: &Table, weight: &Table, eps: f32, out: &mut Table) {
        *out = x.map(|x| {
            let rms = (mean(x, |x| x * x) + f64::from(eps)).sqrt();
            x.iter().zip(&weight.values).map(|(x, weight)| x / rms * weight).collect()
        });
    }

    fn layer_norm(&mut self, x: &Table, weight: &Table, bias: &Table, eps: f32, out: &mut Table) {
        *out = x.map(|x| {
            let middle = mean(x, |x| x);
            let deviation = (mean(x, |x| (x - middle) * (x - middle)) + f64::from(eps)).sqrt();
            let scale = weight.values.iter().zip(&bias.values);
            x.iter().zip(scale).map(|(x, (weight, bias))| (x - middle) / deviation * weight + bias).collect()
        });
    }

    fn add(&mut self, x: &mut Table, y: &Table) {
        x.change(|row, col, x| x + y.values[row * y.width + col]);
    }

    fn add_scaled(&mut self, x: &mut Table, y: &Table, scale: &Table) {
        x.change(|row, col, x| x + y.values[row * y.width + col] * scale.values[col]);
    }

    fn activate(&mut self, activation: Activation, x: &mut Table) {
        x.change(|_, _, x| match activation {
            Activation::Gelu => x * 0.5 * (1.0 + erf(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                x * 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Silu => x * sigmoid(x),
        });
    }

    fn silu_mul(&mut self, gate: &mut Table, up: &Table) {
        gate.change(|row, col, x| x * sigmoid(x) * up.values[row * up.width + col]);
    }

    fn rotate(&mut self, x: &mut Table, angles: &Table, pairs: Pairs) {
        let (head_dim, before) = (angles.width, x.clone());
        x.change(|row, col, x| {
            let (head, at) = (col / head_dim * head_dim, col % head_dim);
            let (pair, partner, is_first) = match pairs {
                Pairs::Neighbours => (at / 2, at ^ 1, at % 2 == 0),
                Pairs::Halves => (at % (head_dim / 2), (at + head_dim / 2) % head_dim, at < head_dim / 2),
            };
            let [cos, sin] = [0, 1].map(|part| angles.values[row * head_dim + 2 * pair + part]);
            let partner = before.values[row * before.width + head + partner];
            if is_first { x * cos - partner * sin } else { partner * sin + x * cos }
        });
    }

    fn attend(&mut self, q: &Table, k: &Table, v: &Table, heads: &Heads, out: &mut Table) {
        *out = attention(q, [k, v], heads, |_| k.rows().len());
    }

    fn attend_causal(
        &mut self,
        q: &Table,
        k: &Table,
        v: &Table,
        heads: &Heads,
        cache: &mut Past,
        layer: usize,
        first_pos: usize,
        out: &mut Table,
    ) {
        for (past, new) in cache.0[layer].iter_mut().zip([k, v]) {
            past.values.truncate(first_pos * new.width);
            past.values.extend(&new.values);
        }
        let [k, v] = &cache.0[layer];
        *out = attention(q, [k, v], heads, |query| first_pos + query + 1);
    }
}

#[test]
fn the_forward_passes_run_on_another_device() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let (gguf, mut device) = (header("encoder.gguf", &files.encoder), Plain);
        let spec = VisionSpec::read(&gguf).unwrap();
        let mut tensors = load(&mut device, &gguf, &files.encoder, &spec.tensors());
        let mut encoder = Encoder::new(spec.encoder.clone(), &mut tensors).unwrap();
        let mut connector = Connector::new(&spec.connector, &mut tensors).unwrap();
        let tiles = golden.f32("tiles");
        let tile = &tiles[..3 * spec.encoder.image_size * spec.encoder.image_size];
        let tower = block_on(encoder.forward(&mut device, tile)).unwrap();
        assert_close(&format!("{variant}: tower"), &tower, &golden.f32("tower")[..tower.len()], 2e-5);
        let tokens = block_on(connector.forward(&mut device, &golden.f32("features"))).unwrap();
        let tokens = block_on(device.download(&tokens)).unwrap();
        assert_close(&format!("{variant}: image tokens"), &tokens, &golden.f32("image_tokens"), 1e-5);
        let mut ready = Ready::new(Plain, &files);
        let image = ready.image(&golden);
        let inputs = prompt(&golden, &image);
        let mut logits = ready.logits(&inputs, 0, 1);
        let answer = golden.i64("greedy_ids");
        for (step, id) in answer[..answer.len() - 1].iter().enumerate() {
            logits.extend(ready.logits(&text(&[*id]), inputs.len() + step, 1));
        }
        assert_close(&format!("{variant}: logits"), &logits, &golden.f32("logits"), 5e-5);
    }
}

#[test]
fn biases_and_the_other_pairing_run_on_another_device() {
    let (golden, files) = (Golden::read("llava-qwen"), Files::convert("llava-qwen", Dtype::F32));
    let ids = golden.i64("text_ids");
    let logits = Ready::new(Plain, &files).logits(&text(&ids), 0, ids.len());
    assert_close("Qwen2", &logits, &golden.f32("text_logits"), 5e-5);
}

#[test]
fn a_session_runs_on_another_device() {
    for variant in VARIANTS {
        let (golden, files) = (Golden::read(variant), Files::convert(variant, Dtype::F32));
        let mut loader = ModelLoader::new(Plain);
        for (name, bytes) in [(DECODER, &files.decoder), (ENCODER, &files.encoder)] {
            for range in loader.header(name, bytes, bytes.len() as u64).unwrap() {
                loader.feed(name, range.start, &bytes[range.start as usize..range.end as usize]).unwrap();
            }
        }
        let (model, gguf) = loader.finish().unwrap();
        let mut session = Session::new(model, &gguf, None, None).unwrap();
        let mut record = Record::default();
        let answer: Vec<u32> = golden.i64("greedy_ids").into_iter().map(|id| id as u32).collect();
        let key = block_on(session.look(&picture(variant), &mut record)).unwrap().key;
        // Twice: the second conversation begins with the first one's picture, on a fork of its cache.
        for _ in 0..2 {
            let mut chat = Chat::about(key);
            block_on(session.ask(&mut chat, QUESTION, &greedy(answer.len()), &mut record)).unwrap();
            assert_eq!(chat.answers(), std::slice::from_ref(&answer), "{variant}");
        }
    }
}
