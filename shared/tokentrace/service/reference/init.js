// Loads the OpenAPI document of this server and shows it. If the server requires a token, the page asks for it and keeps
// it in memory only.
"use strict";

(() => {
  const url = document.documentElement.dataset.openapi;
  const form = document.getElementById("token-form");
  const problem = document.getElementById("problem");
  let token = "";

  async function show() {
    problem.textContent = "";
    const answer = await fetch(url, token ? { headers: { Authorization: `Bearer ${token}` } } : {});
    if (answer.status === 401) {
      form.hidden = false;
      if (token) problem.textContent = "The token is wrong.";
      return;
    }
    if (!answer.ok) throw new Error(`${url} answered ${answer.status}`);
    form.hidden = true;
    const ui = window.SwaggerUIBundle({
      spec: await answer.json(),
      dom_id: "#reference",
      deepLinking: true,
      docExpansion: "list",
      defaultModelsExpandDepth: 0,
      validatorUrl: null,
      onComplete: () => token && ui.preauthorizeApiKey("bearer", token),
    });
  }

  function start() {
    show().catch((error) => {
      problem.textContent = `The document cannot be shown: ${error.message}`;
    });
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    token = document.getElementById("token").value.trim();
    start();
  });
  start();
})();
