// Buttons that save an adaptation as a PEFT folder, and open one.

import { button, el, problem } from "./parts.js";
import { unzip, zip } from "./engine/zip.js";

// engine; name of the adaptation; opened(about): called when a checkpoint was read; status: where errors are said.
export function checkpointButtons(engine, { name, folder, opened, status }) {
  const save = button("Save as a PEFT folder (zip)", async () => {
    try {
      const files = await engine.ask("save", { name });
      const blob = zip(Object.fromEntries(Object.entries(files).map(([file, bytes]) => [`${folder}/${file}`, bytes])));
      const link = el("a", { href: URL.createObjectURL(blob), download: `${folder}.zip` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      status.textContent = `Saved ${folder}.zip. Unpacked, pedagogic_peft.load(model, "${folder}") and Hugging Face PEFT read it.`;
    } catch (error) {
      status.textContent = problem(error);
    }
  });
  const input = el("input", { type: "file", multiple: true, accept: ".zip,.json,.safetensors" });
  input.addEventListener("change", async () => {
    try {
      const files = {};
      for (const file of input.files) {
        const bytes = new Uint8Array(await file.arrayBuffer());
        Object.assign(files, file.name.endsWith(".zip") ? await unzip(bytes) : { [file.name]: bytes });
      }
      await opened(await engine.ask("load", { name, files }));
    } catch (error) {
      status.textContent = `Not opened: ${problem(error)}`;
    } finally {
      input.value = "";
    }
  });
  const node = el("div", { className: "buttons" }, save,
    el("label", {}, el("span", { textContent: "Open a checkpoint (its two files, or a zip):" }), input));
  return { node, save };
}
