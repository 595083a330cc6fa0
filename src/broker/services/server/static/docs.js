"use strict";

window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#docs",
    deepLinking: true,
    displayRequestDuration: true,
    // Tokens stay in the page's memory; the badge would show the document to another host.
    persistAuthorization: false,
    validatorUrl: null,
  });
});
