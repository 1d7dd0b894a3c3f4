//! What users are told about a model, and the sample pictures offered with it: from arguments, or from a JSON file with
//! the manifest's own keys.

use crate::files::decode;
use crate::files::folder::read_small;
use crate::files::json;
use llama3med::file::manifest::{DECODER, ENCODER, MAX_MANIFEST_BYTES, Manifest, Sample, check_path};
use llama3med::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the manifest tells users about a model.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct About {
    /// Name shown to users.
    pub name: String,
    /// One sentence on what the model is.
    pub description: String,
    /// Licence of the weights.
    pub license: String,
    /// Notices that must be shown.
    pub notices: Vec<String>,
    /// Questions offered to the user.
    pub suggested_questions: Vec<String>,
    /// Pictures offered to the user, by their file names in the model folder.
    pub samples: Vec<Sample>,
    /// Current paths of the samples' pictures, in the same order.
    #[serde(skip)]
    pub pictures: Vec<PathBuf>,
}

impl About {
    /// Reads a JSON file; the samples' paths are relative to it. Every picture is decoded once, so that a broken one is
    /// found now and not on the page.
    pub fn read(file: &Path) -> Result<Self> {
        let corrupt = |field: &str, problem: String| Error::corrupt(file.display().to_string(), field, problem);
        let json = json::decoded(&file.display().to_string(), read_small(file, MAX_MANIFEST_BYTES)?)?;
        let mut about: Self = serde_json::from_slice(&json).map_err(|error| corrupt("JSON", error.to_string()))?;
        let mut names = BTreeSet::new();
        for sample in &mut about.samples {
            let picture = file.with_file_name(&sample.path);
            decode(&picture)?;
            let name = picture.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let refuse = |problem: &str| Err(corrupt("samples", format!("{}: {problem}", sample.path)));
            if check_path(&name).is_err() {
                return refuse("expected a file name of letters, digits, '-', '_' and '.'");
            }
            // Some file systems do not distinguish A from a.
            let folded = name.to_ascii_lowercase();
            if folded == "manifest.json" || [DECODER, ENCODER].iter().any(|own| folded.starts_with(own)) {
                return refuse("the model itself has a file of this name");
            }
            if !names.insert(folded) {
                return refuse("another sample has a picture of this name");
            }
            sample.path = name;
            about.pictures.push(picture);
        }
        Ok(about)
    }

    /// A manifest without its files.
    pub fn manifest(&self) -> Manifest {
        Manifest {
            format: "llama3med".into(),
            version: 1,
            name: self.name.clone(),
            description: self.description.clone(),
            license: self.license.clone(),
            notices: self.notices.clone(),
            suggested_questions: self.suggested_questions.clone(),
            samples: self.samples.clone(),
            fidelity: None,
            files: Vec::new(),
        }
    }
}
