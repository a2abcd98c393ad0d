// Without the standalone preset: its top bar would offer to load documents from elsewhere. No validator, for the same reason.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, presets: [SwaggerUIBundle.presets.apis] });
