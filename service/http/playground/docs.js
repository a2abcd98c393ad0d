// Without the standalone preset: its top bar would offer to load documents from elsewhere. No validator, for the same reason.
const spec = await (await fetch("openapi.json")).json();
// The page's own address says best under which prefix a proxy serves all this.
spec.servers = [{ url: new URL(".", location).pathname.replace(/\/$/, "") || "/" }];
SwaggerUIBundle({ spec, dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, presets: [SwaggerUIBundle.presets.apis] });
