"use strict";
// The form works without this; here it takes what is dropped, shows progress, and reads the answer.
{
  const form = document.getElementById("upload");
  const became = document.getElementById("became");

  const upload = (files) => {
    const said = document.getElementById("said");
    const total = files.reduce((sum, [file]) => sum + file.size, 0);
    if (!files.length) {
      said.textContent = "No file was chosen.";
      return;
    }
    if (total > Number(form.dataset.maximum)) {
      said.textContent = "That is more than one upload may have.";
      return;
    }
    const body = new FormData();
    for (const [file, path] of files) body.append("file", file, path);
    const button = form.querySelector("button");
    const bar = document.getElementById("bar");
    document.getElementById("progress").hidden = false;
    button.disabled = true;
    said.textContent = `Sending ${files.length} files…`;
    const request = new XMLHttpRequest();
    const failed = (words) => {
      button.disabled = false;
      said.textContent = `Not taken: ${words}.`;
    };
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) bar.value = event.loaded / event.total;
      if (event.loaded === event.total) said.textContent = "Sent; it is being made safe…";
    };
    request.onerror = () => failed("the connection broke; what came whole is taken");
    request.onload = () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // a page: the session is over, or something before us answered
      }
      if (request.status === 200 && answer.page) location.assign(answer.page);
      else if (request.status === 401) location.assign("/login?next=/upload");
      else failed(answer.error || "load the page anew and try again");
    };
    request.open("POST", form.action);
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("X-CSRF-Token", form.elements.csrf.value);
    request.send(body);
  };

  const filesBelow = async (entry, path) => {
    if (entry.isFile) {
      const file = await new Promise((done, failed) => entry.file(done, failed));
      return [[file, path + entry.name]];
    }
    const reader = entry.createReader();
    const found = [];
    for (;;) {
      // a reader gives at most a hundred at a time
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return found;
      for (const one of some) found.push(...(await filesBelow(one, `${path}${entry.name}/`)));
    }
  };

  if (form) {
    const drop = document.getElementById("drop");
    drop.hidden = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const chosen = [...form.elements.files.files, ...form.elements.folder.files];
      upload(chosen.map((file) => [file, file.webkitRelativePath || file.name]));
    });
    for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
      form.addEventListener(name, (event) => {
        event.preventDefault();
        drop.classList.toggle("over", name === "dragenter" || name === "dragover");
      });
    }
    form.addEventListener("drop", async (event) => {
      // both are gone from the event as soon as we await something
      const plain = [...event.dataTransfer.files].map((file) => [file, file.name]);
      const entries = [...event.dataTransfer.items]
        .map((item) => item.webkitGetAsEntry())
        .filter((entry) => entry);
      const found = await Promise.all(entries.map((entry) => filesBelow(entry, "")));
      upload(entries.length ? found.flat() : plain);
    });
  }

  const look = async () => {
    const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const text = await answer.text();
    const now = new DOMParser().parseFromString(text, "text/html").getElementById("became");
    if (!now) return;
    became.replaceChildren(...now.childNodes);
    became.dataset.waiting = now.dataset.waiting;
    again();
  };
  const again = () => {
    if (became && became.dataset.waiting !== "0") setTimeout(() => look().catch(again), 1000);
  };
  again();
}
