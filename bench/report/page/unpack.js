"use strict";

// The drawing library and the data are packed (zlib, base64). Unpack them, then run the program on them.
async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

function run(text) {
  const script = document.createElement("script");
  script.textContent = text;
  document.body.append(script);
}

(async () => {
  if (!("DecompressionStream" in window)) {
    document.getElementById("unreadable").hidden = false;
    return;
  }
  const [drawing, data] = await Promise.all([unpacked("drawing"), unpacked("data")]);
  Object.assign(window, JSON.parse(data));
  run(drawing);
  run(document.getElementById("program").textContent);
})();
