// Style sheets are bundled: to the compiler they are nothing.
declare module "*.css";
