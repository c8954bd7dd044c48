// A CommonJS file as an ES module: the part after `?` of this module's own address says which.
const file = new URL(import.meta.url).search.slice(1);
const source = await (await fetch(file)).text();
const module = { exports: {} };
new Function("module", "exports", source)(module, module.exports);
export default module.exports;
