// Files that a person chose or dropped: which of them are a model's. Their first bytes decide: downloads are renamed ("… (1).gguf") and some programs name
// what they keep by its hash.

/** @returns {Promise<{ models: File[], others: File[] }>}  in their order; what is named .gguf and is none counts as a model's: its content will be told */
export async function sortFiles(files) {
  const areModels = await Promise.all(files.map(async (file) => /\.gguf$/i.test(file.name) || (await isGguf(file))));
  return { models: files.filter((_, idx) => areModels[idx]), others: files.filter((_, idx) => !areModels[idx]) };
}

async function isGguf(file) {
  try {
    return (await file.slice(0, 4).text()) === "GGUF";
  } catch {
    return false; // a folder, or a file that may not be read: whoever opens it says so
  }
}

/** Which of several files were used, for the person who gave them; nothing where there is no doubt. */
export function choiceText({ models, others }) {
  const names = (files) => files.map(({ name }) => name).join(", ");
  if (others.length === 0 || models.length === 0) return "";
  return `Used: ${names(models)}. Not used, for ${others.length === 1 ? "it is not a GGUF file" : "they are not GGUF files"}: ${names(others)}.`;
}
